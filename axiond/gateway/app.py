"""Open the endpoints, and close them without dropping anybody."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog
from aiohttp import web

from axiond.errors import AxiondError
from axiond.gateway.admin import Control, build_admin
from axiond.gateway.chain import Chain
from axiond.gateway.connection import MOST_BODIES_BYTES, Bodies, ClientServer
from axiond.gateway.listen import BACKLOG, listen
from axiond.gateway.metrics import Metrics
from axiond.gateway.openai import Passthrough
from axiond.gateway.rest import Rest
from axiond.gateway.route import NO_AIDS, Aids
from axiond.gateway.shadow import Shadows
from axiond.gateway.upstream import Upstreams
from axiond.manifest.spec import Server
from axiond.routing.router import Router

LINGER_S = 5.0
ABORT_TIMEOUT_S = 5.0
SENT_POLL_S = 0.05


@asynccontextmanager
async def serve_rest(
    router: Router,
    server: Server,
    metrics: Metrics,
    grace_s: float = 30.0,
    most_bodies_bytes: int = MOST_BODIES_BYTES,
    listener: socket.socket | None = None,
    aids: Aids = NO_AIDS,
) -> AsyncIterator[tuple[str, int]]:
    """
    Serve the REST endpoint on *listener*, or on the manifest's address, while the block runs; yields the address it listens on.

    *aids* is what routing has beside the rules.

    At the end it stops accepting, lets running requests end and their answers be taken for *grace_s* seconds, then ends them with an error.

    Raises:
        AxiondError: the address cannot be listened on.
    """
    logger = structlog.get_logger().bind()
    async with Upstreams(router) as upstreams, Shadows(router, upstreams, logger, metrics.shadow_ended) as shadows:
        bodies = Bodies(max(most_bodies_bytes, server.max_request_body))
        passthrough = Passthrough(router, Chain(router, upstreams, shadows, logger), aids, server, bodies)
        rest = Rest(router, passthrough, bodies, metrics)
        listener = listener or listen(server.listen)
        handler = ClientServer(
            rest.handle,
            max_body_bytes=server.max_request_body,
            head_timeout_s=server.header_timeout_s,
            stall_timeout_s=server.idle_timeout_s,
            keepalive_timeout=server.idle_timeout_s,
            lingering_time=LINGER_S,
            access_log=None,
        )
        runner = web.ServerRunner(handler, shutdown_timeout=ABORT_TIMEOUT_S)
        await runner.setup()
        try:
            site = web.SockSite(runner, listener, backlog=BACKLOG)
            await site.start()
            host, port = listener.getsockname()[:2]
            yield host, port
            rest.is_closing = True
            await site.stop()
            await _drain(rest, handler, grace_s)
        finally:
            await runner.cleanup()


async def _drain(rest: Rest, clients: ClientServer, grace_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await rest.wait_until_idle()
            while clients.has_unsent():  # transports send no signal of having sent all
                await asyncio.sleep(SENT_POLL_S)
                await rest.wait_until_idle()
    rest.abort()
    with suppress(TimeoutError):
        await asyncio.wait_for(rest.wait_until_idle(), ABORT_TIMEOUT_S)


@asynccontextmanager
async def serve_admin(control: Control, path: Path, metrics: Metrics) -> AsyncIterator[None]:
    """
    Serve the admin endpoint on the Unix socket *path*, mode 0660, while the block runs.

    Raises:
        AxiondError: another axiond answers there, or the socket cannot be made.
    """
    runner = web.AppRunner(build_admin(control, metrics), handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
    with _unix_listener(path) as listener:
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield
        finally:
            await runner.cleanup()


@contextmanager
def _unix_listener(path: Path) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _answers(path):
            raise AxiondError(f"another axiond answers on {path}")
        _unlink(path, lambda found: stat.S_ISSOCK(found.st_mode))
        listener.bind(str(path))
        path.chmod(0o660)
        listener.setblocking(False)
        inode = path.stat().st_ino
    except OSError as exc:
        listener.close()
        raise AxiondError(f"cannot make the admin socket {path}: {exc.strerror or exc}") from exc
    except AxiondError:
        listener.close()
        raise
    try:
        yield listener
    finally:
        listener.close()
        _unlink(path, lambda found: found.st_ino == inode)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _unlink(path: Path, is_ours: Callable[[os.stat_result], bool]) -> None:
    with suppress(FileNotFoundError):
        if is_ours(path.stat()):
            path.unlink()
