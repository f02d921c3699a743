"""One engine under a host process: watched, probed, stopped, or left for the next daemon."""

import asyncio
import contextlib
import errno
import json
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from axiond.engine import corefile
from axiond.engine.engine import Endpoint
from axiond.engine.link import Link, end, ended, is_readable, uninterrupted
from axiond.engine.output import Output
from axiond.engine.sweep import descendants
from axiond.errors import EngineStartError
from axiond.kernels.settings import REPORT
from axiond.resources.cores import CorePlan

SOCKET = "s"
STOP_DEADLINE_S = 10.0
PROBE_INTERVAL_S = 0.05
PROBE_TIMEOUT_S = 5.0
OUR_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


@dataclass(frozen=True, slots=True)
class Liveness:
    """How a ready engine is watched: it is hung after *misses* probes in a row without an answer. Patient, for busy machines."""

    interval_s: float = 10.0
    timeout_s: float = 30.0
    misses: int = 3


PATIENT = Liveness()


def ignore(_line: str) -> None:
    pass


class HostedEngine:
    """
    What a started and an adopted engine have in common.

    One that *may_outlive* this daemon is left running when the daemon ends, by whatever end; nothing outlives any other.
    """

    def __init__(self, endpoint: Endpoint, folder: Path, on_line: Callable[[str], None], liveness: Liveness) -> None:
        self.endpoint, self._folder, self._on_line, self._liveness = endpoint, folder, on_line, liveness
        self._output = Output()
        self._link: Link | None = None
        self._life: asyncio.Task[str] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.may_outlive = False
        self.placed = corefile.read(folder)

    @property
    def pids(self) -> tuple[int, ...]:
        if self._link is None or self._life is None or self._life.done() or is_readable(self._link.descriptor):
            return ()
        return (self._link.pid, *sorted(descendants(self._link.pid)))

    def kernels(self) -> bytes | None:
        try:
            return (self._folder / REPORT).read_bytes()
        except OSError:
            return None

    def rebind(self, plan: CorePlan) -> None:
        old, self.placed = self.placed, plan
        if pids := self.pids:
            corefile.follow(self._folder, pids, old, plan)

    @property
    def tail(self) -> tuple[str, ...]:
        return self._output.tail

    async def wait(self) -> str:
        assert self._life, "wait() before start()"
        watching = asyncio.create_task(self._until_hung(), name=f"health of {self.endpoint.key}")
        try:
            await asyncio.wait({self._life, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if self._life.done():
            return self._life.result()
        await self.stop()
        return f"hung: {self._liveness.misses} health probes in a row had no answer"

    async def stop(self) -> None:
        if self._life is None:
            return
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._terminate(self._life), name=f"stop {self.endpoint.key}")
        await uninterrupted(self._stopping)

    async def leave(self) -> bool:
        if self._life is None or self._life.done() or self._stopping or not self.may_outlive:
            await self.stop()
            return False
        self._life.cancel()
        await asyncio.wait({self._life})
        return True

    def _attach(self, link: Link) -> None:
        """From here on the host is watched; the link is closed with the watch."""
        self._link = link
        self._life = asyncio.create_task(self._live(link), name=f"host of {self.endpoint.key}")

    async def _live(self, link: Link) -> str:
        """Read the engine's output until its host ends, or cannot be watched; leave nothing behind; tell how it ended."""
        broken = ""
        with contextlib.closing(link):
            reading = asyncio.create_task(self._read(link))
            try:
                await ended(link.descriptor)
            except OSError as exc:
                broken = f"was killed by SIGKILL, because its host could not be watched: {exc.strerror}"
            except asyncio.CancelledError:
                reading.cancel()
                if not self.may_outlive:
                    await end(link.pid, link.descriptor, self._folder)
                raise
            how = await end(link.pid, link.descriptor, self._folder)
            await asyncio.wait({reading}, timeout=1.0)
            reading.cancel()
        return broken or self._output.ending or f"lost its host, which {how or 'is gone'}"

    async def _read(self, link: Link) -> None:
        heard = link.heard
        with contextlib.suppress(OSError, ValueError):
            while line := await link.reader.readline():
                text = line.decode(errors="replace").rstrip("\n")
                self._output.add(text)
                if heard:
                    heard -= 1
                else:
                    self._on_line(text)

    async def _unless_ended(self, step: Coroutine[Any, Any, None]) -> None:
        """Await a step of the start; raise EngineStartError when the engine ends before."""
        assert self._life
        task = asyncio.create_task(step)
        try:
            await asyncio.wait({task, self._life}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})
        cause = "".join(f": {line}" for line in self._output.errors[:1])
        raise EngineStartError(str(self.endpoint.key), f"{self._life.result()} before it was ready{cause}", self.tail)

    def _http(self, timeout_s: float) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self.endpoint.socket))
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout_s))

    async def _until_ready(self, http: aiohttp.ClientSession) -> None:
        endpoint = self.endpoint
        names: list[str] | None = None
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                names = await served_names(http, endpoint.base_url)
            if names is not None:
                break
            await asyncio.sleep(PROBE_INTERVAL_S)
        if endpoint.model_name not in names:
            raise EngineStartError(str(endpoint.key), f"serves {', '.join(names)} instead of {endpoint.model_name}", self.tail)

    async def _until_hung(self) -> None:
        misses, watch = 0, self._liveness
        async with self._http(watch.timeout_s) as http:
            while misses < watch.misses:
                await asyncio.sleep(watch.interval_s)
                try:
                    is_healthy = await served_names(http, self.endpoint.base_url) is not None
                except (aiohttp.ClientError, OSError, ValueError) as exc:
                    if isinstance(exc, OSError) and exc.errno in OUR_OWN_SHORTAGES:
                        continue
                    is_healthy = False
                misses = 0 if is_healthy else misses + 1

    async def _terminate(self, life: asyncio.Task[str]) -> None:
        assert self._link
        if not life.done():
            self._link.send_signal(signal.SIGTERM)
        _, pending = await asyncio.wait({life}, timeout=STOP_DEADLINE_S)
        if pending:
            self._link.send_signal(signal.SIGKILL)
            await asyncio.wait({life})


async def served_names(http: aiohttp.ClientSession, base_url: str) -> list[str] | None:
    """
    Ask an engine which models it serves; None while it is not healthy.

    Raises:
        ValueError: it answers with something else.
    """
    async with http.get(f"{base_url}/health") as response:
        if response.status != 200:
            return None
    async with http.get(f"{base_url}/v1/models") as response:
        answer = await response.read()
    try:
        return [str(model["id"]) for model in json.loads(answer)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError) as exc:
        raise ValueError(f"/v1/models answers with no list of models: {answer[:200]!r}") from exc
