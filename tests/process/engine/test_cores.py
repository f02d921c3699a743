"""Engines are held to cores, and moved."""

import asyncio
import os
import subprocess
import sys

import pytest

from axiond.engine import corefile
from axiond.engine.process import ProcessEngine
from axiond.engine.spawn import PLAIN
from axiond.resources.affinity import NOWHERE, Held, confine, held_to
from axiond.resources.cores import ANYWHERE, CorePlan
from tests.fakes.remains import folder_of

from .conftest import Build

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")

FIRST, SECOND, *_ = *sorted(os.sched_getaffinity(0)), -1
ONE, OTHER, BOTH = CorePlan((FIRST,)), CorePlan((SECOND,)), CorePlan((FIRST, SECOND))

# Its main thread may run on both, one thread is bound to each, and one may run on both.
CHILD = f"""
import os, threading
ready, over = threading.Barrier(4), threading.Event()
def run(cpus):
    os.sched_setaffinity(0, cpus)
    ready.wait()
    over.wait()
for cpus in ({{{FIRST}}}, {{{SECOND}}}, {{{FIRST}, {SECOND}}}):
    threading.Thread(target=run, args=(cpus,), daemon=True).start()
os.sched_setaffinity(0, {{{FIRST}, {SECOND}}})
ready.wait()
print("x", flush=True)
input()
"""


def test_threads_are_confined_but_for_those_that_compute_where_they_may():
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        both = frozenset({FIRST, SECOND})
        assert held_to([child.pid]) == Held(both, both, both)
        confine(child.pid, both, {frozenset({SECOND})})
        assert held_to([child.pid]) == Held(both, frozenset({SECOND}), both)
        confine(child.pid, {FIRST}, {frozenset({FIRST})})
        assert held_to([child.pid]) == Held(*[frozenset({FIRST})] * 3)
        child.communicate(b"\n", timeout=10)
    assert held_to([child.pid]) == NOWHERE
    confine(child.pid, {FIRST})


async def test_an_engine_moves_and_remembers_where_it_is(build: Build) -> None:
    engine = build()
    engine.placed = BOTH
    await engine.start()
    assert corefile.read(folder_of(engine.endpoint)) == BOTH
    engine.rebind(ONE)
    assert held_to(engine.pids).cores == {FIRST}
    assert corefile.read(folder_of(engine.endpoint)) == engine.placed == ONE
    engine.rebind(BOTH)
    assert all(os.sched_getaffinity(pid) == BOTH.cores for pid in engine.pids)


async def test_an_engine_that_is_moved_before_it_has_a_process_starts_there(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawner may take its time; what is planned meanwhile is not lost."""
    engine: ProcessEngine = build()
    engine.placed = ONE

    class Slow:
        async def spawn(self, args, lock):
            engine.rebind(OTHER)
            await asyncio.sleep(0)
            return await PLAIN.spawn(args, lock)

    monkeypatch.setattr(engine, "_spawner", Slow())
    await engine.start()
    assert held_to(engine.pids).cores == {SECOND}
    assert corefile.read(folder_of(engine.endpoint)) == OTHER


@pytest.mark.parametrize("text", [None, "", "[]", '{"compute": 1}', '{"cores": [1]}'])
def test_a_damaged_file_is_as_none(tmp_path, text):
    if text is not None:
        (tmp_path / corefile.NAME).write_text(text)
    assert corefile.read(tmp_path) == ANYWHERE


def test_what_is_written_is_read_again(tmp_path):
    plan = CorePlan((1, 2), (3,), (0, 1), notes=("shares",))
    corefile.write(tmp_path, plan)
    assert (corefile.read(tmp_path), corefile.read(tmp_path).notes) == (plan, plan.notes)
