"""The REST endpoint's socket: taken over from systemd, which can hold it while no axiond runs, or made."""

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from axiond.errors import AxiondError

BACKLOG = 1024
HIGHEST_PORT = 65535
FIRST_INHERITED = 3
LET_GO_S, LET_GO_POLL_S = 2.0, 0.02


def listen(address: str, inherited: Sequence[socket.socket] = (), let_go: Callable[[], None] = lambda: None) -> socket.socket:
    """
    Listen on *address*. From now on connections are taken; they wait until somebody accepts them.

    Args:
        address: host and port as in the manifest.
        inherited: listening sockets; the one on *address* is used, the others are closed.
        let_go: has whoever kept them close them too, because one of them may be in the way; called when none is used.

    Raises:
        AxiondError: the address cannot be listened on.
    """
    family, where = _resolve(address)
    found: socket.socket | None = None
    for listener in inherited:
        if found is None and _listens_on(listener, family, where):
            found = listener
        else:
            listener.close()
    is_kept = bool(inherited) and not found
    if is_kept:
        let_go()
    listener = found or _bind(address, family, where, LET_GO_S if is_kept else 0.0)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def inherited_sockets(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """Take the sockets that systemd has opened or kept for this process (LISTEN_FDS). To be called once, before anything is opened."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or not (count := environ.get("LISTEN_FDS", "")).isdecimal():
        return []
    sockets = []
    for descriptor in range(FIRST_INHERITED, FIRST_INHERITED + int(count)):
        with suppress(OSError):
            os.set_inheritable(descriptor, False)
            sockets.append(socket.socket(fileno=descriptor))
    return sockets


def _resolve(address: str) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    host, _, port = address.rpartition(":")
    if int(port) > HIGHEST_PORT:  # the resolver would silently take it modulo 65536
        raise AxiondError(f"cannot listen on {address}: ports end at {HIGHEST_PORT}")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as exc:
        raise AxiondError(f"cannot listen on {address}: {exc}") from exc
    return found[0], found[4]


def _listens_on(listener: socket.socket, family: socket.AddressFamily, where: tuple[Any, ...]) -> bool:
    with suppress(OSError):
        return (
            listener.family == family
            and bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            and listener.getsockname()[:2] == where[:2]
        )
    return False


def _bind(address: str, family: socket.AddressFamily, where: tuple[Any, ...], patience_s: float) -> socket.socket:
    until = time.monotonic() + patience_s
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while not _has_bound(listener, where, is_last=time.monotonic() >= until):
            time.sleep(LET_GO_POLL_S)
    except OSError as exc:
        listener.close()
        raise AxiondError(f"cannot listen on {address}: {exc.strerror}; choose another server.listen or stop what uses it") from exc
    return listener


def _has_bound(listener: socket.socket, where: tuple[Any, ...], is_last: bool) -> bool:
    try:
        listener.bind(where)
    except OSError as exc:
        if is_last or exc.errno != errno.EADDRINUSE:
            raise
        return False
    return True
