"""The admin endpoint against a control that records calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

from axiond.errors import AxiondError, ManifestError, Place, Problem, RequestError
from axiond.gateway.app import serve_admin
from axiond.gateway.metrics import Metrics
from axiond.report import CpusReport, Event, PlanReport, ReloadReport, Status
from axiond.routereport import RouteExplanation, RouteQuestion
from axiond.routing.router import Router
from tests.fakes.reports import cpus, explained, healthy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROBLEM = Problem(Place("axiond.toml", 3, 7, "models.a.sorce"), "unknown field", "did you mean source?")


class Recorder:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.followers = 0

    async def status(self) -> Status:
        return healthy(NOW)

    async def cpus(self) -> CpusReport:
        return cpus(NOW)

    async def plan(self, text: bytes, is_json: bool) -> PlanReport:
        self.calls.append(("plan", text, is_json))
        if b"sorce" in text:
            raise ManifestError([PROBLEM])
        return PlanReport(generation=2, models=())

    async def manifest(self) -> tuple[bytes, str]:
        return b"[server]\n", "abc"

    async def put_manifest(self, text: bytes, if_match: str | None, wait: bool = False, timeout_s: float | None = None) -> ReloadReport:
        self.calls.append(("put", text, if_match, wait, timeout_s))
        if if_match not in (None, "abc"):
            raise RequestError(412, "precondition_failed", "The manifest has changed.")
        return ReloadReport(generation=2, is_accepted=True, is_realised=wait)

    async def reload(self, wait: bool = False, timeout_s: float | None = None) -> ReloadReport:
        self.calls.append(("reload", wait, timeout_s))
        if timeout_s == 13:
            raise ValueError("a bug")
        return ReloadReport(generation=1, is_accepted=True, is_realised=wait)

    async def explain(self, asked: RouteQuestion) -> RouteExplanation:
        self.calls.append(asked)
        return explained()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Event]]:
        async def follow() -> AsyncIterator[Event]:
            while True:
                yield await self.events.get()

        self.followers += 1
        try:
            yield follow()
        finally:
            self.followers -= 1


@pytest.fixture
async def control() -> Recorder:
    return Recorder()


@pytest.fixture
async def socket(control: Recorder) -> AsyncIterator[Path]:
    with TemporaryDirectory(prefix="gw") as folder:
        path = Path(folder) / "run" / "admin.sock"
        async with serve_admin(control, path, Metrics(Router(lambda: None))):
            yield path


@pytest.fixture
async def admin(socket: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession("http://axiond", connector=aiohttp.UnixConnector(str(socket))) as session:
        yield session


async def test_status_health_and_metrics(admin: aiohttp.ClientSession) -> None:
    async with admin.get("/admin/v1/cpus") as answer:
        assert CpusReport.model_validate_json(await answer.read()) == cpus(NOW)
    async with admin.get("/admin/v1/status") as answer:
        assert Status.model_validate(await answer.json()) == healthy(NOW)
    async with admin.get("/healthz") as answer:
        assert await answer.text() == "ok\n"
    async with admin.get("/metrics") as answer:
        assert "axiond_generation 0.0" in await answer.text()


@pytest.mark.parametrize(("content_type", "is_json"), [("application/json", True), ("application/toml", False)])
async def test_a_plan_is_made_of_what_is_sent(admin: aiohttp.ClientSession, control: Recorder, content_type: str, is_json: bool) -> None:
    async with admin.post("/admin/v1/plan", data=b"x", headers={"Content-Type": content_type}) as answer:
        assert PlanReport.model_validate(await answer.json()).is_empty
    assert control.calls == [("plan", b"x", is_json)]


async def test_a_question_about_routing_is_passed_on(admin: aiohttp.ClientSession, control: Recorder) -> None:
    asked = {"model": "m", "prompt": "p", "headers": {"X-A": "b"}}
    async with admin.post("/admin/v1/route:explain", json=asked) as answer:
        assert RouteExplanation.model_validate(await answer.json()) == explained()
    assert control.calls == [RouteQuestion(model="m", prompt="p", headers={"X-A": "b"})]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"model": ', "Invalid JSON"),
        (b'{"modle": "m"}', "modle"),
        (b'{"headers": "x"}', "headers: "),
        (b'{"body": []}', "body: "),
        (b"", "Invalid JSON"),
    ],
    ids=["no-json", "unknown-field", "headers", "body", "nothing"],
)
async def test_a_question_without_sense_is_told_where(admin: aiohttp.ClientSession, control: Recorder, text: bytes, says: str) -> None:
    async with admin.post("/admin/v1/route:explain", data=text) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert error["code"] == "invalid_question"
    assert says in error["message"]
    assert control.calls == []


async def test_every_problem_of_a_manifest_is_told(admin: aiohttp.ClientSession) -> None:
    async with admin.post("/admin/v1/plan", data=b"sorce") as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (422, "invalid_manifest")
    assert error["problems"] == [
        {
            "file": "axiond.toml",
            "line": 3,
            "column": 7,
            "field": "models.a.sorce",
            "what": "unknown field",
            "remedy": "did you mean source?",
        }
    ]


async def test_a_manifest_is_replaced_only_as_it_was_read(admin: aiohttp.ClientSession, control: Recorder) -> None:
    async with admin.get("/admin/v1/manifest") as answer:
        etag = answer.headers["ETag"]
        assert (await answer.text(), etag) == ("[server]\n", '"abc"')
    async with admin.put("/admin/v1/manifest?wait=1&timeout=5", data=b"new", headers={"If-Match": etag}) as answer:
        assert ReloadReport.model_validate(await answer.json()).is_realised
    async with admin.put("/admin/v1/manifest", data=b"new", headers={"If-Match": '"old"'}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (412, "precondition_failed")
    async with admin.put("/admin/v1/manifest", data=b"new", headers={"If-Match": "*"}) as answer:
        assert answer.status == 200
    assert control.calls == [("put", b"new", "abc", True, 5.0), ("put", b"new", "old", False, None), ("put", b"new", None, False, None)]


@pytest.mark.parametrize(
    ("query", "call"), [("", (False, None)), ("?wait=1", (True, None)), ("?wait=0", (False, None)), ("?wait=1&timeout=2.5", (True, 2.5))]
)
async def test_a_reload_waits_if_asked(admin: aiohttp.ClientSession, control: Recorder, query: str, call: tuple[Any, ...]) -> None:
    async with admin.post(f"/admin/v1/reload{query}") as answer:
        assert answer.status == 200
    assert control.calls == [("reload", *call)]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/v1/nope", 404),
        ("GET", "/admin/v1/reload", 405),
        ("POST", "/admin/v1/reload?timeout=soon", 400),
        ("POST", "/admin/v1/reload?timeout=13", 500),
    ],
)
async def test_errors_are_explained(admin: aiohttp.ClientSession, method: str, path: str, status: int) -> None:
    async with admin.request(method, path) as answer:
        assert (answer.status, bool((await answer.json())["error"]["message"])) == (status, True)


async def test_events_are_streamed_until_the_client_leaves(admin: aiohttp.ClientSession, control: Recorder) -> None:
    event = Event(time=NOW, name="engine.became_ready", fields={"key": "m@d"})
    async with admin.get("/admin/v1/events") as answer:
        assert await answer.content.readuntil(b"\n\n") == b": axiond\n\n"
        await control.events.put(event)
        kind, data = (await answer.content.readuntil(b"\n\n")).strip().split(b"\n")
        assert (kind, Event.model_validate_json(data.removeprefix(b"data: "))) == (b"event: engine.became_ready", event)
        assert control.followers == 1
    async with asyncio.timeout(5):
        while control.followers:  # noqa: ASYNC110  # nothing signals it
            await asyncio.sleep(0.005)


async def test_the_socket_is_for_the_group_and_goes_at_the_end(control: Recorder) -> None:
    with TemporaryDirectory(prefix="gw") as folder:
        path = Path(folder) / "admin.sock"
        async with serve_admin(control, path, Metrics(Router(lambda: None))):
            assert path.stat().st_mode & 0o777 == 0o660
            with pytest.raises(AxiondError, match="another axiond answers"):
                async with serve_admin(control, path, Metrics(Router(lambda: None))):
                    pass
        assert not path.exists()


async def test_a_socket_left_behind_is_replaced_but_a_file_is_not(control: Recorder) -> None:
    with TemporaryDirectory(prefix="gw") as folder:
        path = Path(folder) / "admin.sock"
        server = await asyncio.start_unix_server(lambda *_: None, path)
        server.close()
        await server.wait_closed()
        async with serve_admin(control, path, Metrics(Router(lambda: None))):
            assert path.is_socket()
        path.write_text("precious")
        with pytest.raises(AxiondError, match="cannot make the admin socket"):
            async with serve_admin(control, path, Metrics(Router(lambda: None))):
                pass
        assert path.read_text() == "precious"
