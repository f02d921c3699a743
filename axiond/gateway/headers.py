"""Which headers cross the gateway."""

from collections.abc import Mapping

from multidict import CIMultiDict

SERVER = "axiond"
OWN = "x-axiond-"  # what axiond says, and nobody else can

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# The body arrives here decompressed and with a length of its own; the client's key is for axiond alone.
_NOT_FORWARDED = _HOP_BY_HOP | {
    "host",
    "authorization",
    "x-api-key",
    "cookie",
    "content-length",
    "content-encoding",
    "accept-encoding",
    "expect",
    "x-request-id",
}
_NOT_RETURNED = _HOP_BY_HOP | {"content-length", "x-request-id", "date", "server"}


def forwarded(headers: Mapping[str, str], request_id: str) -> CIMultiDict[str]:
    """The headers for the engine. It is told not to compress: nothing on this machine gains from that."""
    kept = _kept(headers, _NOT_FORWARDED, request_id)
    kept["Accept-Encoding"] = "identity"
    return kept


def returned(headers: Mapping[str, str], request_id: str) -> CIMultiDict[str]:
    """The headers for the client."""
    kept = _kept(headers, _NOT_RETURNED, request_id)
    kept["Server"] = SERVER
    return kept


def _kept(headers: Mapping[str, str], dropped: frozenset[str], request_id: str) -> CIMultiDict[str]:
    kept = CIMultiDict([
        (name, value) for name, value in headers.items() if (lower := name.lower()) not in dropped and not lower.startswith(OWN)
    ])  # fmt: skip
    for name in _nominated(headers):
        kept.popall(name, None)
    kept["X-Request-ID"] = request_id
    return kept


def _nominated(headers: Mapping[str, str]) -> list[str]:
    """Headers that `Connection` declares to be for this hop only."""
    connection = headers.get("Connection", "")
    if not connection or connection.lower() in ("keep-alive", "close"):
        return []
    return [name.strip() for name in connection.split(",")]
