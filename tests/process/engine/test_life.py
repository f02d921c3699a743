"""Start, prove, stop: real children, the fake engine."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from axiond.engine import hosted
from axiond.engine.adopt import clean_leftovers
from axiond.engine.hosted import Liveness
from axiond.engine.process import ProcessEngine, read_config
from axiond.errors import EngineStartError, GoldenPromptFailed, ProbeTimeout
from axiond.manifest.spec import GoldenPrompt
from axiond.resources.cores import CorePlan
from axiond.resources.usage import usage
from tests.fakes.remains import all_ended, folder_of, remains

from .conftest import FAKE, Build


async def health(engine: ProcessEngine) -> int:
    connector = aiohttp.UnixConnector(str(engine.endpoint.socket))
    async with aiohttp.ClientSession(connector=connector) as http, http.get("http://engine/health") as response:
        return response.status


async def test_it_is_ready_and_stops(build: Build) -> None:
    engine = build(served_names=("big", "small"), lora={"poet": "/lora"})
    await engine.start()
    pids = engine.pids
    assert (await health(engine), len(pids), engine.endpoint.model_name, engine.endpoint.adapters) == (200, 2, "big", ("poet",))
    assert usage(pids).bytes > 2**20
    assert folder_of(engine.endpoint).stat().st_mode & 0o777 == 0o700
    await engine.stop()
    assert await engine.wait() == "was stopped"
    assert engine.pids == ()
    assert remains(folder_of(engine.endpoint), pids) == {}


async def test_an_engine_that_hangs_is_ended_and_says_so(build: Build) -> None:
    engine = build(liveness=Liveness(interval_s=0.05, timeout_s=0.2, misses=2))
    await engine.start()
    pids = engine.pids
    os.kill(pids[1], signal.SIGSTOP)
    async with asyncio.timeout(20):
        assert await engine.wait() == "hung: 2 health probes in a row had no answer"
    assert remains(folder_of(engine.endpoint), pids) == {}


async def test_an_engine_that_answers_again_is_left_alone(build: Build) -> None:
    engine = build(liveness=Liveness(interval_s=0.05, timeout_s=0.2, misses=1000))
    await engine.start()
    waiting = asyncio.create_task(engine.wait())
    os.kill(engine.pids[1], signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.5)
    os.kill(engine.pids[1], signal.SIGCONT)
    assert await health(engine) == 200
    await engine.stop()
    assert await waiting == "was stopped"


async def test_stopping_twice_at_once_and_again_is_one_stop(build: Build) -> None:
    engine = build()
    await engine.start()
    await asyncio.gather(engine.stop(), engine.stop())
    await engine.stop()
    assert remains(folder_of(engine.endpoint)) == {}


async def test_an_engine_that_never_started_can_be_stopped(build: Build) -> None:
    await build().stop()


async def test_it_prints_to_the_tail_and_to_the_listener(build: Build) -> None:
    lines: list[str] = []
    engine = build(on_line=lines.append)
    await engine.start()
    await engine.stop()
    assert tuple(lines) == engine.tail
    assert lines[0].startswith("fake engine")


async def test_a_flood_without_a_line_end_is_bounded(build: Build) -> None:
    engine = build(command=("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo; seq 500"), start_timeout_s=30)
    with pytest.raises(EngineStartError) as caught:
        await engine.start()
    assert len(caught.value.tail) == 60
    assert max(map(len, caught.value.tail)) <= 500


async def test_the_tail_shows_what_was_wrong(build: Build) -> None:
    engine = build(engine_args={"exit-at-start": "no such weights"})
    with pytest.raises(EngineStartError) as caught:
        await engine.start()
    assert caught.value.problem == "exited with code 1 before it was ready: RuntimeError: no such weights"
    assert "RuntimeError: no such weights" in caught.value.tail
    assert remains(folder_of(engine.endpoint)) == {}


async def test_a_command_that_does_not_exist(build: Build) -> None:
    engine = build(command=("/no/such/command",))
    with pytest.raises(EngineStartError) as caught:
        await engine.start()
    assert caught.value.problem == "exited with code 127 before it was ready"
    assert "/no/such/command: No such file or directory" in caught.value.tail


async def test_a_command_line_that_the_kernel_refuses(build: Build) -> None:
    engine = build(chat_template="x" * 2**18)
    with pytest.raises(EngineStartError, match="exited with code 127 before it was ready") as caught:
        await engine.start()
    assert f"{FAKE[0]}: Argument list too long" in caught.value.tail
    assert remains(folder_of(engine.endpoint)) == {}


@pytest.mark.parametrize("arguments", [{"ready-after": 60}, {"fail-probe": True}], ids=["silent", "unhealthy"])
async def test_it_is_not_ready_in_time(build: Build, arguments: dict[str, object]) -> None:
    engine = build(engine_args=arguments, start_timeout_s=1.5)
    with pytest.raises(ProbeTimeout) as caught:
        await engine.start()
    assert caught.value.problem == "was not ready within 1.5 s"
    assert remains(folder_of(engine.endpoint)) == {}


async def test_another_model_answers(build: Build) -> None:
    liar = ("sh", "-c", f'exec {FAKE[0]} {FAKE[1]} "$@" --served-model-name other', "sh")
    with pytest.raises(EngineStartError, match="serves other instead of m"):
        await build(command=liar).start()


async def test_the_runtime_folder_is_too_deep(build: Build, tmp_path: Path) -> None:
    engine = build()
    object.__setattr__(engine._launch, "runtime_dir", tmp_path)
    engine._folder = tmp_path / ("x" * 60) / "e" / "12345678"
    with pytest.raises(EngineStartError, match="bytes too long for Unix sockets"):
        await engine.start()


async def test_a_quantized_checkpoint_is_refused_where_none_is_wanted(build: Build, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    with pytest.raises(EngineStartError, match="its checkpoint is quantized with awq"):
        await build(quantization="none").start()


GOLDEN = GoldenPrompt(prompt="What is the capital of France?", expect="Paris|Lutetia")


async def test_the_golden_prompt_is_answered(build: Build) -> None:
    engine = build(engine_args={"answer": "It is Paris."}, golden=GOLDEN)
    await engine.start()


@pytest.mark.parametrize(
    ("golden", "arguments", "problem"),
    [
        (GOLDEN, {"answer": "It is Rome."}, "failed its golden prompt: wanted a match of 'Paris|Lutetia', got 'It is Rome.'"),
        (GOLDEN.model_copy(update={"min_tokens_per_s": 50}), {"answer": "I say Paris", "token-delay": 0.1}, "wanted 50 tokens/s or more"),
        (GOLDEN, {"reject": 500}, "failed its golden prompt: HTTP 500"),
        (GOLDEN, {"fail-requests": 1}, "failed its golden prompt: "),
    ],
    ids=["wrong", "slow", "refused", "cut"],
)  # fmt: skip
async def test_the_golden_prompt_fails(build: Build, golden: GoldenPrompt, arguments: dict[str, object], problem: str) -> None:
    engine = build(engine_args=arguments, golden=golden)
    with pytest.raises(GoldenPromptFailed) as caught:
        await engine.start()
    assert problem in caught.value.problem
    assert remains(folder_of(engine.endpoint)) == {}


async def test_it_dies_while_it_answers_its_golden_prompt(build: Build) -> None:
    engine = build(engine_args={"die-after-tokens": 1, "exit-code": 9}, golden=GOLDEN)
    with pytest.raises((EngineStartError, GoldenPromptFailed)):
        await engine.start()
    assert remains(folder_of(engine.endpoint)) == {}


async def test_it_exits_by_itself(build: Build) -> None:
    engine = build(engine_args={"exit-after": 1, "exit-code": 3})
    await engine.start()
    assert await asyncio.wait_for(engine.wait(), 10) == "exited with code 3"
    assert remains(folder_of(engine.endpoint)) == {}


async def test_it_ignores_sigterm(build: Build) -> None:
    engine = build(engine_args={"ignore-sigterm": True})
    await engine.start()
    pids = engine.pids
    await asyncio.wait_for(engine.stop(), 12)
    assert remains(folder_of(engine.endpoint), pids) == {}


async def spawned(engine: ProcessEngine) -> None:
    """Wait until the engine's own process runs."""
    async with asyncio.timeout(10):
        while len(engine.pids) < 2:  # noqa: ASYNC110  it is the kernel that is waited for
            await asyncio.sleep(0)


@pytest.mark.parametrize("moment", ["at once", "spawned"])
async def test_it_is_cancelled_while_starting(build: Build, moment: str) -> None:
    engine = build(engine_args={"ready-after": 60})
    start = asyncio.create_task(engine.start())
    await (spawned(engine) if moment == "spawned" else asyncio.sleep(0))
    pids = engine.pids
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert remains(folder_of(engine.endpoint), pids) == {}


async def test_it_is_stopped_while_starting(build: Build) -> None:
    engine = build(engine_args={"ready-after": 60})
    start = asyncio.create_task(engine.start())
    await spawned(engine)
    await engine.stop()
    with pytest.raises(EngineStartError, match="was stopped before it was ready"):
        await start
    assert remains(folder_of(engine.endpoint)) == {}


async def test_a_cancelled_stop_still_stops(build: Build) -> None:
    engine = build()
    await engine.start()
    stop = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert remains(folder_of(engine.endpoint)) == {}


async def test_nothing_secret_reaches_it(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    engine = build()
    await engine.start()
    for pid in engine.pids:
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_it_keeps_to_its_cores(build: Build) -> None:
    core = max(os.sched_getaffinity(0))
    engine = build()
    engine.placed = CorePlan((core,))
    await engine.start()
    assert [os.sched_getaffinity(pid) for pid in engine.pids] == [{core}] * 2


async def test_cores_that_the_daemon_may_not_use_are_refused(build: Build) -> None:
    engine = build()
    object.__setattr__(engine._launch, "cores", CorePlan((), missing=(4000,)))
    with pytest.raises(EngineStartError, match="asks for cores that the daemon may not use: 4000"):
        await engine.start()


async def test_cleaning_leftovers_does_not_touch_a_live_engine(build: Build, runtime_dir: Path) -> None:
    engine = build()
    await engine.start()
    assert clean_leftovers(runtime_dir) == ()
    assert await health(engine) == 200
    pids = engine.pids
    await engine.stop()
    await all_ended(pids, 5)


async def test_a_host_that_cannot_be_watched_is_not_left_running(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[int] = []

    def fail(pid: int) -> int:
        hosts.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    engine = build()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", fail)
        with pytest.raises(EngineStartError, match=r"could not be started: .*Too many open files"):
            await engine.start()
    assert engine.pids == ()
    assert remains(folder_of(engine.endpoint), hosts) == {}


async def test_it_starts_and_is_watched_while_a_thousand_clients_are_connected(build: Build) -> None:
    """Descriptors have numbers then that `select()` does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine = build()
    with contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1024):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        await engine.start()
    assert len(engine.pids) == 2


async def test_a_watch_that_breaks_ends_the_engine_and_holds_up_nothing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_descriptor: int) -> None:
        await broken.wait()
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    broken = asyncio.Event()
    monkeypatch.setattr(hosted, "ended", fail)
    engine = build(engine_args={"ignore-sigterm": True})
    await engine.start()
    pids = engine.pids
    waiting = asyncio.create_task(engine.wait())
    broken.set()
    async with asyncio.timeout(10):
        assert await waiting == "was killed by SIGKILL, because its host could not be watched: Cannot allocate memory"
    assert remains(folder_of(engine.endpoint), pids) == {}


async def test_the_daemons_own_shortage_is_no_sign_of_a_hung_engine(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[aiohttp.ClientSession] = []
    enough = asyncio.Event()

    async def fail(http: aiohttp.ClientSession, _base_url: str) -> list[str]:
        probes.append(http)
        if len(probes) > 5:
            enough.set()
        raise OSError(errno.EMFILE, "Too many open files")

    engine = build(liveness=Liveness(interval_s=0.01, timeout_s=0.2, misses=2))
    await engine.start()
    monkeypatch.setattr(hosted, "served_names", fail)
    waiting = asyncio.create_task(engine.wait())
    async with asyncio.timeout(10):
        await enough.wait()
    assert not waiting.done()
    assert len(set(probes)) == 1
    await engine.stop()
    assert await waiting == "was stopped"


CONFIGS = {
    "text": ('{"quantization_config": "awq"}', "is no table"),
    "list": ('{"quantization_config": ["awq"]}', "is no table"),
}


@pytest.mark.parametrize(("config", "problem"), CONFIGS.values(), ids=CONFIGS)
async def test_a_damaged_checkpoint_is_refused(build: Build, tmp_path: Path, config: str, problem: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(EngineStartError, match=problem):
        await build().start()


def test_a_config_nested_too_deeply_counts_as_broken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert read_config(tmp_path) == {}


ODD_SERVER = """
import sys
from aiohttp import web
async def answer(request):
    return web.Response(text=sys.argv[1] if request.path == "/v1/models" else "")
app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, path=next(word for word in sys.argv if word.startswith("--uds=")).removeprefix("--uds="), print=None)
"""


@pytest.mark.parametrize("answer", ["no JSON", "[]", '{"data": [{}]}', '{"data": 3}', "null", "[" * 100_000], ids=range(6))
async def test_a_server_of_another_kind(build: Build, answer: str) -> None:
    engine = build(command=(sys.executable, "-c", ODD_SERVER, answer))
    with pytest.raises(EngineStartError, match="could not be started: /v1/models answers with no list of models"):
        await engine.start()
    assert remains(folder_of(engine.endpoint)) == {}
