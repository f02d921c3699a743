"""The command line against a real HTTP server on a real Unix socket, each command a real process."""

import asyncio
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from axiond import cli, log
from axiond.manifest.load import load
from axiond.manifest.store import LastGood
from axiond.report import Event, PlanReport, ReloadReport, Report
from tests.fakes.reports import busy_plan, cpus, healthy, rolled_back, with_kernels

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NOT_REALISED = "chat: exited with code 1 before it was ready"


@dataclass
class FakeDaemon:
    """Answers every admin request with *answer*, and remembers them."""

    folder: Path
    answer: Handler | None = None
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "admin.sock"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, await request.read()))
        assert self.answer
        return await self.answer(request)


@pytest.fixture
async def daemon() -> AsyncIterator[FakeDaemon]:
    with tempfile.TemporaryDirectory(prefix="ax") as folder:
        fake = FakeDaemon(Path(folder))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(fake.socket)).start()
        yield fake
        await runner.cleanup()


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


async def start(*arguments: str, **environ: str) -> asyncio.subprocess.Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AXIOND_", "COV"))}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "axiond", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**clean, "COLUMNS": "120", **environ},
    )  # fmt: skip


async def axiond(*arguments: str, **environ: str) -> Outcome:
    process = await start(*arguments, **environ)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    assert b"Traceback" not in err
    return Outcome(process.returncode, out.decode(), err.decode())


def answering(body: Report | dict[str, Any] | bytes, status: int = 200) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        if isinstance(body, bytes):
            return web.Response(body=body, status=status)
        text = body.model_dump_json() if isinstance(body, Report) else json.dumps(body)
        return web.Response(text=text, status=status, content_type="application/json")

    return answer


PROBLEM = {"file": "a.toml", "line": 3, "column": 4, "field": "models.x.y", "what": "no such field", "remedy": "did you mean z?"}
REFUSAL = {"error": {"message": "not shown beside the problems", "problems": [{**PROBLEM, "line": 0}, PROBLEM]}}


@pytest.mark.parametrize(("report", "code"), [(healthy, 0), (rolled_back, 2)], ids=["healthy", "rolled back"])
async def test_status(daemon: FakeDaemon, report: Callable[[datetime], Any], code: int) -> None:
    """The tables of the render tests, here through the whole program."""
    canned = report(datetime.now(UTC))
    daemon.answer = answering(canned)
    table, as_json = await asyncio.gather(*(axiond("status", "--socket", str(daemon.socket), *more) for more in ((), ("--json",))))
    assert (table.code, as_json.code) == (code, code)
    assert f"generation {canned.generation}, serving 3, settled, daemon 85 MiB" in table.out
    assert re.search(r"chat@0123456789ab +ready +1h02m +yes +101 102 103", table.out)
    assert json.loads(as_json.out) == canned.model_dump(mode="json")


async def test_status_of_one_model(daemon: FakeDaemon) -> None:
    canned = with_kernels(datetime.now(UTC))
    other = canned.engines[0].model_copy(update={"key": "other@ba9876543210", "model": "other"})
    daemon.answer = answering(canned.model_copy(update={"engines": (*canned.engines, other)}))
    arguments = (("chat",), ("chat", "--json"), ("chta",))
    table, as_json, unknown = await asyncio.gather(*(axiond("status", "--socket", str(daemon.socket), *more) for more in arguments))
    assert re.search(r"w4a8 +120 +avx512vnni", table.out)
    assert json.loads(as_json.out) == canned.model_dump(mode="json")
    assert (unknown.code, unknown.err) == (1, 'axiond: there is no model "chta"; there are chat, other\n')


@pytest.mark.parametrize(
    ("report", "code"),
    [(PlanReport(generation=3, models=()), 0), (busy_plan(), 2)],
    ids=["nothing", "changes"],
)
async def test_plan(daemon: FakeDaemon, report: PlanReport, code: int) -> None:
    """Exit codes as terraform's; the candidate goes to the daemon byte for byte."""
    daemon.answer = answering(report)
    candidate = daemon.folder / "new.toml"
    candidate.write_bytes(b"# caf\xc3\xa9\r\n[models]\n")
    outcome = await axiond("plan", str(candidate), "--socket", str(daemon.socket))
    assert outcome.code == code
    assert daemon.requests == [("POST", "/admin/v1/plan", candidate.read_bytes())]
    assert outcome.err == ""
    if code == 2:
        assert "max_model_len: 2048 -> 4096 (engine)" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "report", "code", "out", "err"),
    [
        ((), (4, True, True, ""), 0, "generation 4 is served.\n", ""),
        ((), (4, True, False, NOT_REALISED), 1, "", f"axiond: generation 4 was not realised: {NOT_REALISED}\n"),
        ((), (4, False, False, "too big"), 1, "", "axiond: generation 4 was rejected: too big\n"),
        ((), (4, False, False, "a:1: x\nb:2: y"), 1, "", "axiond: generation 4 was rejected:\na:1: x\nb:2: y\n"),
        (("--no-wait",), (4, True, False, "chat is on its way"), 0, "generation 4 was accepted.\n", ""),
    ],
    ids=["served", "rolled back", "rejected", "many problems", "accepted"],
)
async def test_reload(
    daemon: FakeDaemon, arguments: tuple[str, ...], report: tuple[int, bool, bool, str], code: int, out: str, err: str
) -> None:
    """What the unit's ExecReload reports: the truth, by exit code and by a sentence."""
    fields = dict(zip(("generation", "is_accepted", "is_realised", "message"), report, strict=True))
    daemon.answer = answering(ReloadReport.model_validate(fields))
    assert await axiond("reload", "--timeout", "7", *arguments, AXIOND_ADMIN_SOCKET=str(daemon.socket)) == Outcome(code, out, err)
    assert daemon.requests == [("POST", f"/admin/v1/reload?wait={int(not arguments)}&timeout=7", b"")]


async def test_a_refused_candidate_shows_every_problem(daemon: FakeDaemon) -> None:
    daemon.answer = answering(REFUSAL, 422)
    (daemon.folder / "new.json").write_text("{}")
    outcome = await axiond("plan", str(daemon.folder / "new.json"), "--socket", str(daemon.socket))
    lines = "a.toml: models.x.y: no such field (did you mean z?)\na.toml:3:4: models.x.y: no such field (did you mean z?)\n"
    assert outcome == Outcome(1, "", f"axiond: {lines}")


async def test_what_is_wrong_with_a_candidate_is_told_of_its_own_file(daemon: FakeDaemon) -> None:
    """Not of the daemon's manifest, which it is read in the place of; what that includes keeps its name."""
    status = healthy(datetime.now(UTC))
    root, included = str(Path(status.manifest).with_suffix(".json")), "/etc/axiond/models.d/a.toml"
    problems = [{**PROBLEM, "file": root, "what": f"is twice, at {root}:1:2"}, {**PROBLEM, "file": included}]
    refusal = answering({"error": {"message": "", "problems": problems}}, 422)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (refusal if request.path.endswith("/plan") else answering(status))(request)

    daemon.answer = answer
    (candidate := daemon.folder / "new.json").write_text("{}")
    outcome = await axiond("plan", str(candidate), "--socket", str(daemon.socket))
    first, second = outcome.err.removeprefix("axiond: ").splitlines()
    assert first == f"{candidate}:3:4: models.x.y: is twice, at {candidate}:1:2 (did you mean z?)"
    assert second.startswith(f"{included}:3:4: ")


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (answering(b"<html>", 502), "axiond: HTTP 502: <html>"),
        (answering(b"not json"), "is the daemon another version of axiond?"),
        (answering({"generation": 1}), "is the daemon another version of axiond?"),
    ],
    ids=["no envelope", "not JSON", "another report"],
)
async def test_strange_answers_are_errors(daemon: FakeDaemon, handler: Handler, sentence: str) -> None:
    daemon.answer = handler
    outcome = await axiond("reload", "--socket", str(daemon.socket))
    assert outcome.code == 1
    assert sentence in outcome.err


async def test_cpus(daemon: FakeDaemon) -> None:
    """With a daemon what it says; without one, the cores of this machine, and on standard error that it is alone."""
    daemon.answer = answering(cpus(datetime.now(UTC)))
    arguments = (("--socket", str(daemon.socket)), ("--socket", str(daemon.socket), "--json"), ("--socket", "/none", "--json"))
    table, as_json, alone = await asyncio.gather(*(axiond("cpus", *more) for more in arguments))
    assert {request[:2] for request in daemon.requests} == {("GET", "/admin/v1/cpus")}
    assert (table.code, as_json.code, alone.code) == (0, 0, 0)
    assert "chat@0123456789ab" in table.out
    assert json.loads(as_json.out)["cores"][0] == {
        "cpus": [0, 16], "package": 0, "node": 0, "cluster": 0, "kind": "big", "barred": "", "is_reserved": True, "compute": [],
        "others": [],
    }  # fmt: skip
    assert os.sched_getaffinity(0) <= {cpu for core in json.loads(alone.out)["cores"] for cpu in core["cpus"]}
    assert alone.err.endswith("this is the machine alone:\n")


@pytest.mark.parametrize("command", ["status", "reload", "events"])
async def test_no_daemon(command: str, tmp_path: Path) -> None:
    """One sentence, and what to do."""
    outcome = await axiond(command, "--socket", str(tmp_path / "admin.sock"))
    assert (outcome.code, outcome.out) == (1, "")
    assert f"no daemon answers on {tmp_path}/admin.sock: the socket does not exist\nIs it running? Try:" in outcome.err


async def test_plan_without_a_daemon_says_so(tmp_path: Path) -> None:
    """Compared with nothing: everything is to load."""
    manifest = tmp_path / "m.toml"
    manifest.write_text('[models.a]\nsource = "/x"\n')
    outcome = await axiond("plan", str(manifest), "--socket", str(tmp_path / "admin.sock"))
    assert outcome.code == 2
    assert "Plan: 1 to load." in outcome.out
    assert outcome.err.endswith("the socket does not exist; this is what a first start would do:\n")


async def test_plan_without_a_daemon_compares_with_what_was_served_last(tmp_path: Path) -> None:
    manifest = tmp_path / "a.toml"
    manifest.write_text('[models.a]\nsource = "/x"\nmax_model_len = 2048\n[models.b]\nsource = "/x"\n')
    LastGood(tmp_path / "state", manifest).save(load(manifest).manifest, 7, "etag")
    arguments = ("plan", str(manifest), "--socket", str(tmp_path / "none"))
    same = await axiond(*arguments, STATE_DIRECTORY=str(tmp_path / "state"))
    assert same.code == 0
    manifest.write_text('[models.a]\nsource = "/x"\nmax_model_len = 4096\n[models.b]\nsource = "/x"\n')
    changed = await axiond(*arguments, STATE_DIRECTORY=str(tmp_path / "state"))
    assert changed.code == 2
    assert changed.err.endswith("; compared with generation 7, the last good one:\n")
    assert "max_model_len: 2048 -> 4096 (engine)" in changed.out


async def test_dead_socket(daemon: FakeDaemon) -> None:
    """A socket file whose daemon was killed says so."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(daemon.folder / "dead.sock"))
    outcome = await axiond("status", "--socket", str(daemon.folder / "dead.sock"))
    assert outcome.code == 1
    assert "the socket is dead, its daemon has gone" in outcome.err
    assert "systemctl status axiond" in outcome.err


async def test_daemon_that_dies_while_answering(daemon: FakeDaemon) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport
        request.transport.close()
        return web.Response()

    daemon.answer = hang_up
    outcome = await axiond("reload", "--socket", str(daemon.socket))
    assert outcome.code == 1
    assert "the daemon went away while answering" in outcome.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.toml", 'server = {{ runtime_dir = "{0}" }}'),
        ("m.toml", 'server.admin_socket = "{0}/admin.sock"\nmodels = "nonsense"'),
        ("m.json", '{{"server": {{"runtime_dir": "{0}"}}}}'),
    ],
    ids=["runtime_dir", "admin_socket of a wrong manifest", "JSON"],
)
async def test_socket_is_found_through_the_manifest(daemon: FakeDaemon, name: str, text: str) -> None:
    daemon.answer = answering(healthy(datetime.now(UTC)))
    manifest = daemon.folder / name
    manifest.write_text(text.format(daemon.folder))
    assert (await axiond("status", "--manifest", str(manifest))).code == 0


async def stream(request: web.Request, *events: Event) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b": hello\n\n")
    for event in events:
        await response.write(f"event: {event.name}\ndata: {event.model_dump_json()}\n\n".encode())
    return response


EVENTS = tuple(
    Event(time=datetime(2026, 1, 2, 3, 4, second, tzinfo=UTC), name=name, fields={"key": "chat@1", "size": size})
    for second, (name, size) in enumerate((("engine.was_started", 1), ("engine.became_ready", "x" * 200_000)))
)


async def test_events(daemon: FakeDaemon) -> None:
    """One line per event, however long, and the end of the stream is an error."""
    daemon.answer = lambda request: stream(request, *EVENTS)
    text, as_json = await asyncio.gather(*(axiond("events", "--socket", str(daemon.socket), *more) for more in ((), ("--json",))))
    assert text.out.splitlines() == [
        "03:04:00 engine.was_started key=chat@1 size=1",
        f"03:04:01 engine.became_ready key=chat@1 size={'x' * 59}…",
    ]
    assert [Event.model_validate_json(line) for line in as_json.out.splitlines()] == list(EVENTS)
    assert (text.code, as_json.code) == (1, 1)
    assert "it ended the stream of events" in text.err


async def test_watch_follows_events_and_ends_with_the_daemon(daemon: FakeDaemon) -> None:
    """An event brings a new status at once, without waiting for the second to pass."""
    is_over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/admin/v1/status":
            return await answering(healthy(datetime.now(UTC)))(request)
        response = await stream(request, EVENTS[0])
        await is_over.wait()
        return response

    daemon.answer = answer
    process = await start("status", "--watch", "--json", "--socket", str(daemon.socket))
    assert process.stdout
    for _ in range(3):
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["generation"] == 3
    is_over.set()
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, b"it ended the stream of events" in err) == (1, True)


async def test_check_names_every_problem(tmp_path: Path) -> None:
    """In the form that editors jump to; the second file has none."""
    bad, good = tmp_path / "bad.toml", tmp_path / "good.toml"
    bad.write_text('[models.a]\nsource = "/x"\nquantisation = "awq"\n[models.b]\nsource = 1\n')
    good.write_text('[models.a]\nsource = "/x"\n')
    refused, as_json, accepted = await asyncio.gather(
        axiond("check", str(bad)), axiond("check", "--json", str(bad)), axiond("check", str(good))
    )
    assert refused.code == as_json.code == 1
    assert refused.err.splitlines()[0] == f'{bad}:3:1: models.a.quantisation: no such field (did you mean "quantization"?)'
    assert refused.err.splitlines()[1].startswith(f"{bad}:5:1: models.b.source: ")
    assert refused.err.splitlines()[2:] == ["2 problems."]
    assert [problem["place"]["line"] for problem in json.loads(as_json.out)["problems"]] == [3, 5]
    assert accepted == Outcome(0, f"{good} is good: 1 model, 0 routes.\n", "")


async def test_models_that_cannot_fit_are_refused_with_the_sum(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[models.a]\nsource = "/nowhere"\nkv_cache = "9000GiB"\n[models.b]\nsource = "/nowhere"\nload = "lazy"\n')
    checked, planned = await asyncio.gather(
        axiond("check", str(path)), axiond("plan", str(path), "--socket", str(tmp_path / "none"), XDG_STATE_HOME=str(tmp_path))
    )
    for outcome in (checked, planned):
        assert outcome.code == 1
        assert "GiB more than the memory budget of" in outcome.err
        assert re.search(r"  a: 900\d\.\d GiB: KV cache 9000\.0 \+ processes", outcome.err)
        assert "b: " not in outcome.err
        assert "Choose a smaller kv_cache" in outcome.err
    assert "b: " in planned.out


@pytest.mark.parametrize("arguments", [("bogus",), ("plan", "--bogus"), ("reload", "--timeout", "soon")])
async def test_wrong_usage_exits_1(arguments: tuple[str, ...]) -> None:
    """Not 2 as usual: a script must not take a typo for "there are changes"."""
    outcome = await axiond(*arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert "Usage: axiond" in outcome.err


async def test_schema_is_json_with_change_classes() -> None:
    outcome, as_json = await asyncio.gather(axiond("schema"), axiond("schema", "--json"))
    assert outcome == as_json
    assert outcome.code == 0
    assert json.loads(outcome.out)["$defs"]["ModelSpec"]["properties"]["aliases"]["x-axiond-change"] == "live"


async def test_help_shows_an_example_for_every_command() -> None:
    commands = ("serve", "check", "plan", "reload", "schema", "status", "events")
    for outcome in await asyncio.gather(*(axiond(command, "--help") for command in commands)):
        assert outcome.code == 0
        assert "Example: " in outcome.out


def test_examples_select_events_that_exist() -> None:
    names = re.findall(r'\.name == "([^"]+)"', Path(cli.__file__).read_text())
    code = "".join(path.read_text() for path in Path(log.__file__).parent.rglob("*.py"))
    constants = {value: name for name, value in vars(log).items() if name.isupper() and isinstance(value, str)}
    assert names
    assert all(f"log.{constants[name]}" in code for name in names)
