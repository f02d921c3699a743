"""Start an engine in a private folder, and prove it."""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from axiond.engine import corefile
from axiond.engine.argv import checkpoint_problem, environment, server_argv
from axiond.engine.engine import Endpoint
from axiond.engine.golden import GoldenRequestFailed, ask, judge
from axiond.engine.hosted import PATIENT, PROBE_TIMEOUT_S, SOCKET, HostedEngine, Liveness, ignore
from axiond.engine.link import Identity, link_to_new
from axiond.engine.spawn import PLAIN, HostArgs, Spawner
from axiond.engine.sweep import LOCK
from axiond.errors import EngineError, EngineStartError, GoldenPromptFailed, ProbeTimeout
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.resources.cores import ANYWHERE, CorePlan

SERVER = (sys.executable, "-P", "-m", "axiond.engine.server")
ENGINES = "e"
LONGEST_SOCKET_PATH = 107
# vLLM puts sockets with names of this length beside ours.
LONGEST_SOCKET_NAME = 36


@dataclass(frozen=True, slots=True)
class Launch:
    """
    Everything that a start needs.

    Args:
        cores: where it runs; wherever the daemon may if there are none.
        keep_s: how long a proven engine waits for the next daemon when its own is gone; None: it ends with its daemon.
        memory_bytes: what was planned for it.
    """

    key: EngineKey
    name: str
    spec: ModelSpec
    folder: Path
    runtime_dir: Path
    state_dir: Path
    cores: CorePlan = ANYWHERE
    keep_s: float | None = None
    memory_bytes: int = 0
    command: tuple[str, ...] = SERVER


class ProcessEngine(HostedEngine):
    """An engine that this daemon starts."""

    def __init__(
        self,
        launch: Launch,
        on_line: Callable[[str], None] = ignore,
        liveness: Liveness = PATIENT,
        spawner: Spawner = PLAIN,
    ) -> None:
        folder = launch.runtime_dir.absolute() / ENGINES / secrets.token_hex(4)
        name = (launch.spec.served_names or (launch.name,))[0]
        super().__init__(Endpoint(launch.key, name, socket=folder / SOCKET, adapters=tuple(launch.spec.lora)), folder, on_line, liveness)
        self._launch, self._spawner = launch, spawner
        self.placed = launch.cores

    async def start(self) -> None:
        spec, key = self._launch.spec, str(self._launch.key)
        try:
            async with asyncio.timeout(spec.start_timeout_s):
                await self._check()
                await self._spawn()
                await self._prove()
        except TimeoutError:
            await self.stop()
            raise ProbeTimeout(key, f"was not ready within {spec.start_timeout_s:g} s", self.tail) from None
        except BaseException as exc:
            await self.stop()
            if isinstance(exc, EngineError) or not isinstance(exc, Exception):
                raise
            raise EngineStartError(key, f"could not be started: {exc or type(exc).__name__}", self.tail) from exc

    async def _check(self) -> None:
        """Refuse what would fail later with less clear words, or be ignored in silence."""
        launch = self._launch
        problem = checkpoint_problem(launch.spec, await asyncio.to_thread(read_config, launch.folder))
        if not launch.folder.is_dir():
            problem = f"could not be started: there is no folder {launch.folder}"
        if missing := launch.cores.missing:
            problem = f"asks for cores that the daemon may not use: {', '.join(map(str, missing))}"
        if (over := len(os.fsencode(self._folder)) + 1 + LONGEST_SOCKET_NAME - LONGEST_SOCKET_PATH) > 0:
            problem = f"could not be started: server.runtime_dir is {over} bytes too long for Unix sockets: {launch.runtime_dir}"
        if problem:
            raise EngineStartError(str(launch.key), problem)

    async def _spawn(self) -> None:
        launch = self._launch
        plan = self.placed if self.placed.cores else CorePlan(tuple(sorted(os.sched_getaffinity(0))))
        args = HostArgs(
            folder=str(self._folder),
            cores=tuple(sorted(plan.cores)),
            nodes=plan.nodes,
            keep_s=launch.keep_s,
            command=launch.command,
            argv=server_argv(launch.name, launch.spec, launch.folder, self._folder / SOCKET),
            environ=environment(launch.spec, plan.compute, self._folder, launch.state_dir, os.environ),
        )
        self._folder.mkdir(mode=0o700, parents=True)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            corefile.write(self._folder, plan)
            pid = await self._spawner.spawn(args, lock)
            link = await link_to_new(self._folder, pid, lock)
            undo.pop_all()
        self._attach(link)
        if self.placed.cores and self.placed != plan:
            await asyncio.to_thread(self.rebind, self.placed)

    async def _prove(self) -> None:
        async with self._http(PROBE_TIMEOUT_S) as http:
            await self._unless_ended(self._until_ready(http))
            await self._unless_ended(self._ask_golden(http))
        assert self._link
        endpoint, launch = self.endpoint, self._launch
        await self._link.prove(Identity(launch.key, endpoint.model_name, endpoint.adapters, launch.memory_bytes, time.time()))
        self.may_outlive = launch.keep_s is not None

    async def _ask_golden(self, http: aiohttp.ClientSession) -> None:
        if (golden := self._launch.spec.golden) is None:
            return
        try:
            answer = await ask(http, self.endpoint.base_url, self.endpoint.model_name, golden)
            problem = await judge(golden, answer)
        except (GoldenRequestFailed, aiohttp.ClientError, ValueError) as exc:
            problem = f"failed its golden prompt: {exc}"
        if problem:
            raise GoldenPromptFailed(str(self._launch.key), problem, self.tail)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's config.json; empty if there is none or it is broken, which vLLM tells better."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(config := json.loads((folder / "config.json").read_bytes()), dict):
            return config
    return {}
