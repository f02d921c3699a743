"""What stands for an API key or an address, and shares of traffic that always take in the same ones. Pure."""

import hashlib

_SIZE = 2.0**64


def digest(secret: str) -> str:
    """Stands for an API key or an address, "" for none; looking it up tells nothing about keys that come close."""
    return hashlib.blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() if secret else ""


def share_of(label: str, identity: str) -> float:
    """
    Place *identity* in [0, 1), always at the same point for one *label*, and anywhere for another.

    Who is below 0.1 is below 0.2 too: a share that grows keeps those whom it has.
    """
    digest = hashlib.blake2b(f"{label}\0{identity}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _SIZE
