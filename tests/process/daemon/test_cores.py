"""The whole daemon keeps fake engines on cores of their own."""

import asyncio
import os

import pytest

from axiond.client import AdminClient
from axiond.resources.machine import format_cpu_list
from tests.fakes.running import FAKE, Running, running

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="written for two cores")

FIRST, SECOND = (str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2])
BOTH = format_cpu_list(os.sched_getaffinity(0))


def spec(folder, **fields):
    return {"source": str(folder / "model"), "kv_cache": "64MiB", "drain_grace_s": 5, **fields}


async def until_on(daemon: Running, **cores: str) -> dict[str, int]:
    """Wait until each model's engine runs where it shall; return the hosts' process ids."""
    seen = {}
    try:
        async with asyncio.timeout(20), AdminClient(daemon.socket) as admin:
            while seen != cores:
                engines = (await admin.status()).engines
                seen = {engine.model: engine.cores for engine in engines if engine.pids}
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{seen} instead of {cores}:\n{daemon.log}") from None
    return {engine.model: engine.pids[0] for engine in engines}


async def test_engines_have_cores_of_their_own_and_make_room_for_others(folder):
    """One engine has both cores; a second one takes one of them, and gives it back when it goes. Nothing is restarted."""
    async with running(folder, {"models": {"a": spec(folder)}}) as daemon:
        (before,) = (await until_on(daemon, a=BOTH)).values()
        daemon.manifest["models"]["b"] = spec(folder)
        daemon.write()
        pids = await until_on(daemon, a=FIRST, b=SECOND)
        assert pids["a"] == before
        async with AdminClient(daemon.socket) as admin:
            assert [(core.compute, core.is_reserved) for core in (await admin.cpus()).cores if not core.barred] == [
                ((engine.key,), False) for engine in (await admin.status()).engines
            ]
        del daemon.manifest["models"]["b"]
        daemon.write()
        assert await until_on(daemon, a=BOTH) == {"a": before}


async def test_a_core_can_be_reserved_for_the_daemon_while_it_runs(folder):
    async with running(folder, {"models": {"a": spec(folder), "b": spec(folder, cores=SECOND)}}) as daemon:
        assert daemon.process
        await until_on(daemon, a=FIRST, b=SECOND)
        daemon.manifest["server"]["reserved_cores"] = 1
        daemon.write()
        await until_on(daemon, a=SECOND, b=SECOND)
        async with asyncio.timeout(10):
            while os.sched_getaffinity(daemon.process.pid) != {int(FIRST)}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        notes = {engine.model: engine.core_notes for engine in (await daemon.status()).engines}
        assert notes == {
            "a": (f"shares CPU {SECOND} with b: there are not enough cores",),
            "b": (f"shares CPU {SECOND} with a: there are not enough cores",),
        }


async def test_the_next_daemon_finds_engines_where_they_were(folder):
    """It keeps them there, though starting from nothing it would have planned otherwise."""
    kept = {"on_exit": "keep", "keep_for": "60s"}
    async with running(folder, {"models": {"a": spec(folder), "b": spec(folder)}, "server": kept}) as daemon:
        await until_on(daemon, a=FIRST, b=SECOND)
        model = daemon.manifest["models"].pop("a")
        daemon.write()
        await until_on(daemon, b=BOTH)
        daemon.manifest["models"]["a"] = model
        daemon.write()
        await daemon.settled(3)
        before = await until_on(daemon, a=SECOND, b=FIRST)
        await daemon.stop()
        await daemon.start(*FAKE)
        await daemon.ready()
        assert await until_on(daemon, a=SECOND, b=FIRST) == before
        assert "engine.was_rebound" not in daemon.log.rpartition("daemon.was_started")[2]
        daemon.manifest["server"]["on_exit"] = "stop"
        daemon.write()
        await daemon.stop()
        await daemon.start(*FAKE)
        await daemon.ready()
