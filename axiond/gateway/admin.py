"""The admin endpoint, on a Unix socket: what axiond does, would do, and shall do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import orjson
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError

from axiond import log
from axiond.errors import ManifestError, Problem, RequestError
from axiond.gateway.envelope import Dialect, error_body, error_headers
from axiond.gateway.metrics import Metrics
from axiond.report import CpusReport, Event, PlanReport, ReloadReport, Report, Status
from axiond.routereport import RouteExplanation, RouteQuestion

MAX_MANIFEST_BYTES = 64 * 2**20
KEEP_ALIVE_S = 15.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control(Protocol):
    """What the admin endpoint needs of the daemon."""

    async def status(self) -> Status: ...

    async def plan(self, text: bytes, is_json: bool) -> PlanReport:
        """What the manifest *text* would do. Raises ManifestError."""
        ...

    async def manifest(self) -> tuple[bytes, str]:
        """The root file's text and its etag."""
        ...

    async def put_manifest(self, text: bytes, if_match: str | None, wait: bool = False, timeout_s: float | None = None) -> ReloadReport:
        """Replace the root file. Raises ManifestError, or RequestError 412 if *if_match* is not the etag."""
        ...

    async def cpus(self) -> CpusReport: ...

    async def reload(self, wait: bool = False, timeout_s: float | None = None) -> ReloadReport: ...

    async def explain(self, asked: RouteQuestion) -> RouteExplanation:
        """How a request would be routed. Raises RequestError."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Follow events; drops the oldest for a reader that is too slow."""
        ...


def build_admin(control: Control, metrics: Metrics) -> web.Application:
    """The aiohttp application; `app.serve_admin()` gives it its socket."""
    admin = _Admin(control, metrics)
    app = web.Application(middlewares=[_explain], client_max_size=MAX_MANIFEST_BYTES)
    app.add_routes([
        web.get("/healthz", admin.health),
        web.get("/metrics", admin.metrics),
        web.get("/admin/v1/status", admin.status),
        web.get("/admin/v1/cpus", admin.cpus),
        web.post("/admin/v1/plan", admin.plan),
        web.get("/admin/v1/manifest", admin.get_manifest),
        web.put("/admin/v1/manifest", admin.put_manifest),
        web.post("/admin/v1/reload", admin.reload),
        web.post("/admin/v1/route:explain", admin.explain),
        web.get("/admin/v1/events", admin.events, allow_head=False),
    ])  # fmt: skip
    return app


class _Admin:
    def __init__(self, control: Control, metrics: Metrics) -> None:
        self._control, self._metrics = control, metrics

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def status(self, request: web.Request) -> web.Response:
        status = await self._control.status()
        return _report(status.model_copy(update={"routes": self._metrics.requests_by_route()}))

    async def cpus(self, request: web.Request) -> web.Response:
        return _report(await self._control.cpus())

    async def plan(self, request: web.Request) -> web.Response:
        return _report(await self._control.plan(await request.read(), request.content_type == "application/json"))

    async def explain(self, request: web.Request) -> web.Response:
        try:
            asked = RouteQuestion.model_validate_json(await request.read())
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            what = ".".join(map(str, first["loc"]))
            raise RequestError(400, "invalid_question", f"{what}: {first['msg']}" if what else first["msg"], param=what or None) from exc
        return _report(await self._control.explain(asked))

    async def get_manifest(self, request: web.Request) -> web.Response:
        text, etag = await self._control.manifest()
        return web.Response(body=text, headers={"Content-Type": "text/plain; charset=utf-8", "ETag": f'"{etag}"'})

    async def put_manifest(self, request: web.Request) -> web.Response:
        if_match = request.headers.get("If-Match")
        etag = if_match.removeprefix("W/").strip('"') if if_match and if_match != "*" else None
        return _report(await self._control.put_manifest(await request.read(), etag, *_patience(request)))

    async def reload(self, request: web.Request) -> web.Response:
        return _report(await self._control.reload(*_patience(request)))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events until the client leaves; a comment now and then shows that the line is alive."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        async with self._control.subscribe() as events:
            await response.prepare(request)
            await response.write(b": axiond\n\n")
            following = asyncio.ensure_future(anext(events))
            try:
                while True:
                    await asyncio.wait((following,), timeout=KEEP_ALIVE_S)
                    if not following.done():
                        await response.write(b": keep-alive\n\n")
                        continue
                    event = following.result()
                    await response.write(f"event: {event.name}\ndata: {event.model_dump_json()}\n\n".encode())
                    following = asyncio.ensure_future(anext(events))
            except StopAsyncIteration:
                return response
            finally:
                following.cancel()


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into bodies that the CLI reads."""
    try:
        return await handler(request)
    except ManifestError as error:
        return _error(RequestError(422, "invalid_manifest", str(error)), error.problems)
    except RequestError as error:
        return _error(error)
    except web.HTTPException as error:
        return _error(RequestError(error.status, "invalid_request", error.text or error.reason))
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception as error:
        structlog.get_logger().exception(log.ACTION_FAILED, path=request.path)
        return _error(RequestError(500, "internal_error", f"{type(error).__name__}: {error}"))


def _patience(request: web.Request) -> tuple[bool, float | None]:
    """Whether to wait for the end of a reload, and for how many seconds."""
    try:
        timeout_s = float(request.query["timeout"]) if "timeout" in request.query else None
    except ValueError as exc:
        raise RequestError(400, "invalid_query", "`timeout` must be a number of seconds.", param="timeout") from exc
    return request.query.get("wait", "0") not in ("", "0", "false"), timeout_s


def _report(report: Report) -> web.Response:
    return web.Response(text=report.model_dump_json(), content_type="application/json")


def _error(error: RequestError, problems: Sequence[Problem] = ()) -> web.Response:
    body: dict[str, Any] = orjson.loads(error_body(error, Dialect.OPENAI))
    body["error"]["problems"] = [
        {
            "file": problem.place.file,
            "line": problem.place.line,
            "column": problem.place.column,
            "field": problem.place.field,
            "what": problem.what,
            "remedy": problem.remedy,
        }
        for problem in problems
    ]
    return web.Response(status=error.status, body=orjson.dumps(body), headers=error_headers(error))
