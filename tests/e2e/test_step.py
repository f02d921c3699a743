"""What axiond changes in vLLM's step, as vLLM's own configuration and threads show it."""

import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from axiond.kernels.settings import Settings
from bench.models import make

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

MODELS = Path(__file__).parents[2] / "var" / "bench-models"


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, which imports vLLM; its configuration sets variables for its children."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0,1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = os.environ.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("axiond.kernels.step")
    os.environ.clear()
    os.environ.update(before)


def backend(**options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(str(make(MODELS, "tiny")), enforce_eager=True, max_model_len=128, **options).create_engine_config()
    return config.parallel_config.distributed_executor_backend


def test_one_process(step: ModuleType) -> None:
    """
    The first of the cores is the main thread's, which EngineCore is told when it is started, and nobody else.

    Installing twice is installing once.
    """
    from vllm.v1.engine import utils
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from axiond.kernels.executor import OneProcessExecutor

    names = ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT")
    step.install(Settings())
    step.install(Settings())
    assert backend() == "axiond.kernels.executor.OneProcessExecutor"
    seen = []
    for executor in (OneProcessExecutor, UniProcExecutor):
        with utils._configure_uniproc_startup_threads(executor, 1):
            seen.append([os.environ.get(name) for name in names])
    assert seen == [["2", "0 1", "10000"], [None] * 3]
    assert os.environ.keys().isdisjoint(names)


@pytest.mark.parametrize("options", [{"distributed_executor_backend": "mp"}, {"tensor_parallel_size": 2}], ids=str)
def test_processes_that_were_asked_for(step: ModuleType, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if "tensor_parallel_size" in options else "0,1")
    step.install(Settings())
    assert backend(**options) == "mp"
    assert "GOMP_CPU_AFFINITY" not in os.environ


def test_threads_that_nobody_bound_stay(step: ModuleType) -> None:
    """As there is nobody to bind them to, vLLM's worker keeps its own process."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    step.install(Settings())
    assert backend() == "mp"


def test_main_thread_alone_keeps_its_core(step: ModuleType) -> None:
    """Threads that the main one started share its core until they are let go; those that were bound elsewhere stay."""
    is_over, ready, tids = threading.Event(), threading.Barrier(3), []

    def live(cores: set[int] | None) -> None:
        if cores:
            os.sched_setaffinity(0, cores)
        tids.append(threading.get_native_id())
        ready.wait()
        is_over.wait()

    everywhere = os.sched_getaffinity(0)
    first, *others = sorted(everywhere)
    if not others:
        pytest.skip("needs two CPUs")
    os.sched_setaffinity(0, {first})
    try:
        threads = []
        for cores in (None, {others[0]}):
            threads.append(threading.Thread(target=live, args=(cores,)))
            threads[-1].start()
            while len(tids) < len(threads):
                pass
        ready.wait()
        step.executor.unbind_other_threads()
        assert os.sched_getaffinity(0) == {first}
        assert [os.sched_getaffinity(tid) for tid in tids] == [os.sched_getaffinity(os.getppid()), {others[0]}]
    finally:
        is_over.set()
        os.sched_setaffinity(0, everywhere)
        for thread in threads:
            thread.join()


def test_a_thread_that_ends_meanwhile_is_let_go(step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads are listed first, and one after the other is asked then."""
    is_over, asked = threading.Event(), []
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    affinity = os.sched_getaffinity

    def ask(tid: int) -> set[int]:
        if tid == thread.native_id:
            asked.append(tid)
            raise ProcessLookupError
        return affinity(tid)

    monkeypatch.setattr(os, "sched_getaffinity", ask)
    try:
        step.executor.unbind_other_threads()
        assert asked
    finally:
        is_over.set()
        thread.join()
