"""Engines that an earlier daemon has left running: take over those that were proven, end the others."""

import asyncio
import contextlib
import fcntl
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp

from axiond.engine.engine import Endpoint
from axiond.engine.hosted import PATIENT, PROBE_TIMEOUT_S, SOCKET, HostedEngine, Liveness
from axiond.engine.link import Identity, Link, end, link_to_old
from axiond.engine.process import ENGINES
from axiond.engine.sweep import LOCK, sweep
from axiond.errors import EngineError, EngineStartError
from axiond.reconcile.state import EngineKey

# Busy with requests it may be late, but whoever waits for it waits in vain if it hangs.
ANSWER_TIMEOUT_S = 10.0


class AdoptedEngine(HostedEngine):
    """An engine that this daemon has found running. It is watched at once; its start is no more than a probe."""

    def __init__(
        self, link: Link, identity: Identity, folder: Path, on_line: Callable[[EngineKey, str], None], liveness: Liveness = PATIENT
    ) -> None:
        endpoint = Endpoint(identity.key, identity.model_name, socket=folder / SOCKET, adapters=identity.adapters)
        super().__init__(endpoint, folder, lambda line: on_line(identity.key, line), liveness)
        self.identity = identity
        self.may_outlive = True
        self._attach(link)

    async def kill(self) -> None:
        """As `stop()`, for one that would not hear SIGTERM, or that nobody would wait for."""
        if self._link and self._life and not self._life.done():
            self._link.send_signal(signal.SIGKILL)
        await self.stop()

    async def start(self) -> None:
        key = str(self.identity.key)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._http(PROBE_TIMEOUT_S) as http:
                await self._unless_ended(self._until_ready(http))
        except EngineError:
            await self.stop()
            raise
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as exc:
            await self.kill()
            raise EngineStartError(key, f"was found running, but did not answer: {exc or type(exc).__name__}", self.tail) from exc


async def find_engines(runtime_dir: Path, on_line: Callable[[EngineKey, str], None]) -> tuple[AdoptedEngine, ...]:
    """Greet the hosts of an earlier daemon's proven engines. All else that is left below *runtime_dir* is ended."""
    found = await asyncio.gather(*(_find(folder, on_line) for folder in await asyncio.to_thread(_held, runtime_dir)))
    engines: dict[EngineKey, AdoptedEngine] = {}
    for engine in filter(None, found):
        if engines.setdefault(engine.identity.key, engine) is not engine:
            await engine.kill()
    return tuple(engines.values())


async def end_engines(runtime_dir: Path) -> None:
    """End whatever an earlier daemon has left below *runtime_dir*."""
    await asyncio.gather(*(_end(folder) for folder in await asyncio.to_thread(_held, runtime_dir)))


async def _find(folder: Path, on_line: Callable[[EngineKey, str], None]) -> AdoptedEngine | None:
    try:
        link, hello = await link_to_old(folder)
    except (OSError, TimeoutError):
        await asyncio.to_thread(sweep, folder)
        return None
    if hello.identity is not None:
        return AdoptedEngine(link, hello.identity, folder, on_line)
    await end(link.pid, link.descriptor, folder)
    link.close()
    return None


async def _end(folder: Path) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        link, _ = await link_to_old(folder)
        await end(link.pid, link.descriptor, folder)
        link.close()
    await asyncio.to_thread(sweep, folder)


def _held(runtime_dir: Path) -> list[Path]:
    """Clean up, and list the folders that a host still holds."""
    clean_leftovers(runtime_dir)
    return sorted(runtime_dir.absolute().glob(f"{ENGINES}/*"))


def clean_leftovers(runtime_dir: Path) -> tuple[str, ...]:
    """Sweep every engine folder under *runtime_dir* that neither a daemon nor a host holds any more; return their names."""
    swept = []
    for folder in sorted(runtime_dir.glob(f"{ENGINES}/*")):
        with contextlib.suppress(OSError), (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(folder)
            swept.append(folder.name)
    return tuple(swept)
