"""API keys."""

import hmac
from collections.abc import Iterable, Mapping

from axiond.errors import RequestError


def authorize(headers: Mapping[str, str], api_keys: Iterable[str]) -> str:
    """
    Let pass who carries one of *api_keys*, as `Authorization: Bearer` or `x-api-key`; everyone if there are none.

    Returns:
        The key; "" if there are none.

    Raises:
        RequestError: 401.
    """
    wanted = [key.encode() for key in api_keys]
    if not wanted:
        return ""
    given = _given_key(headers)
    if not given:
        raise RequestError(401, "missing_api_key", "This server needs an API key: send it as `Authorization: Bearer KEY`.")
    # Every key is compared, so that the time taken tells nothing about which came close.
    if not sum(hmac.compare_digest(given, key) for key in wanted):
        raise RequestError(401, "invalid_api_key", "The API key is not one of this server's.")
    return given.decode("utf-8", "replace")


def _given_key(headers: Mapping[str, str]) -> bytes:
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    given = key.strip() if scheme.lower() == "bearer" else headers.get("X-Api-Key", "")
    return given.encode("utf-8", "surrogateescape")
