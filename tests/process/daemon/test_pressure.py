"""Real memory pressure: a daemon and engines that really take memory, in a control group that cannot hold them all."""

import asyncio
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from axiond.client import AdminClient
from tests.fakes.running import FAKE, Running, chat

MIB = 2**20
LIMIT_MIB = 2048
CGROUPS = Path("/sys/fs/cgroup")
ENGINE_MIB = 700  # about what is expected of an engine that holds next to nothing


def places():
    """Where a group of this process's own might be made: (folder, file of the limit, file that counts kills)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            yield from ((folder, "memory.limit_in_bytes", "memory.oom_control") for folder in (root / path.lstrip("/"), root))
        elif not controllers:
            yield from ((folder, "memory.max", "memory.events") for folder in (CGROUPS / path.lstrip("/"), CGROUPS))


class Group:
    def __init__(self, folder, kills):
        self.folder, self._kills = folder, folder / kills

    def kills(self):
        """How many processes the kernel has killed here for want of memory."""
        return dict(line.split() for line in self._kills.read_text().splitlines())["oom_kill"]


@contextmanager
def limited(limit_mib):
    tried = []
    for parent, limit, kills in places():
        folder = parent / f"axiond-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as exc:
            tried.append(f"{parent}: {exc.strerror}")
            continue
        try:
            (folder / limit).write_text(str(limit_mib * MIB))
        except OSError as exc:
            tried.append(f"{folder / limit}: {exc.strerror}")
            folder.rmdir()
            continue
        try:
            yield Group(folder, kills)
        finally:
            deadline = time.monotonic() + 10
            while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            folder.rmdir()
        return
    pytest.skip("no control group for memory can be made here: " + "; ".join(tried))


class Confined(Running):
    """A daemon that puts itself into a control group before it is one."""

    async def start_in(self, group):
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *("sh", "-c", f'echo $$ > {group.folder}/cgroup.procs && exec "$@"', "sh", sys.executable, *FAKE, str(self.path)),
                stdout=log, stderr=log, env={**os.environ, "XDG_STATE_HOME": str(self.folder / "x")},
            )  # fmt: skip


def model(folder, **rest):
    options = {"touch-mib": ENGINE_MIB, "stop-at-once": True} | rest.pop("engine_args", {})
    return {"source": str(folder / "model"), "kv_cache": "64MiB", "load": "lazy", "min_resident": 0, "engine_args": options, **rest}


async def started(folder, group, models):
    daemon = Confined(folder, {"models": models, "server": {"queue_timeout_s": 60}})
    daemon.write()
    await daemon.start_in(group)
    return await daemon.ready()


async def ask(http, daemon, name, max_tokens=4):
    """The answer's status, and the error's code if it is one: every request must end with one of both."""
    status, body = await chat(http, daemon.base, name, max_tokens=max_tokens)
    return status, body["error"]["code"] if status != 200 else ""


async def test_four_models_share_memory_for_two_and_nobody_is_killed(folder, http):
    with limited(LIMIT_MIB) as group:
        daemon = await started(folder, group, {name: model(folder) for name in "abcd"})
        try:
            async with asyncio.timeout(100):
                answers = await asyncio.gather(*(ask(http, daemon, name) for _ in range(3) for name in "abcd"))
            assert [status for status, _ in answers] == [200] * 12, answers
            assert group.kills() == "0"
            memory = (await daemon.status()).memory
            assert memory.budget_bytes < LIMIT_MIB * MIB
            assert memory.promised_bytes <= memory.budget_bytes
        finally:
            await daemon.stop()


async def test_a_busy_engine_that_grows_without_end_is_ended_before_the_kernel_does_it(folder, http):
    """An idle one is unloaded as any other that has outgrown its place; this one has a request that would run for hours."""
    leak = model(folder, engine_args={"touch-mib": 100, "grow-mib-per-s": 400, "token-delay": 1.0})
    with limited(LIMIT_MIB) as group:
        daemon = await started(folder, group, {"leak": leak, "good": model(folder, pin=True)})
        try:
            assert await ask(http, daemon, "good") == (200, "")
            before = (await daemon.status()).engines
            async with AdminClient(daemon.socket) as admin, asyncio.timeout(60):
                asking = asyncio.create_task(ask(http, daemon, "leak", max_tokens=10000))
                event = await anext(event async for event in admin.events() if event.name == "engine.was_sacrificed")
                status, code = await asking
            assert event.fields["key"].startswith("leak@")
            assert "were expected" in event.fields["reason"]
            assert (status, bool(code)) in ((502, True), (503, True)), (status, code)
            assert await ask(http, daemon, "good") == (200, "")
            after = (await daemon.status()).engines
            assert [engine.pids for engine in after if engine.model == "good"] == [engine.pids for engine in before]
            assert group.kills() == "0"
        except TimeoutError:
            raise AssertionError(daemon.log) from None
        finally:
            await daemon.stop()
