"""The admin endpoint as seen from outside: HTTP over the daemon's Unix socket."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import orjson
from pydantic import ValidationError

from axiond.errors import DaemonRefused, DaemonUnreachable, Place, Problem
from axiond.report import CpusReport, Event, PlanReport, ReloadReport, Report, Status
from axiond.routereport import RouteExplanation, RouteQuestion

_ANSWER_TIMEOUT_S: Final = 30.0
_CONNECT_TIMEOUT_S: Final = 5.0
_MAX_EVENT_BYTES: Final = 2**20
T = TypeVar("T", bound=Report)


class AdminClient:
    """
    Ask the daemon behind *socket*; use it with `async with`.

    Every method raises DaemonUnreachable when nobody answers, and DaemonRefused when the answer is an error.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(path=str(self._socket))
        self._session = aiohttp.ClientSession("http://axiond", connector=connector, read_bufsize=_MAX_EVENT_BYTES)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def status(self) -> Status:
        """What the daemon wants, has and does."""
        return await self._ask(Status, "GET", "/admin/v1/status")

    async def cpus(self) -> CpusReport:
        """Which engine runs on which core."""
        return await self._ask(CpusReport, "GET", "/admin/v1/cpus")

    async def plan(self, text: bytes, content_type: str) -> PlanReport:
        """What the manifest *text* would do."""
        return await self._ask(PlanReport, "POST", "/admin/v1/plan", data=text, headers={"Content-Type": content_type})

    async def explain(self, asked: RouteQuestion) -> RouteExplanation:
        """How a request would be routed, and why."""
        headers = {"Content-Type": "application/json"}
        return await self._ask(RouteExplanation, "POST", "/admin/v1/route:explain", data=asked.model_dump_json(), headers=headers)

    async def reload(self, *, wait: bool, timeout_s: float) -> ReloadReport:
        """Read the manifest again; with *wait*, return once it is realised or refused, or after *timeout_s*."""
        query = {"wait": str(int(wait)), "timeout": f"{timeout_s:g}"}
        deadline_s = _ANSWER_TIMEOUT_S + (timeout_s if wait else 0)
        return await self._ask(ReloadReport, "POST", "/admin/v1/reload", params=query, deadline_s=deadline_s)

    async def events(self) -> AsyncIterator[Event]:
        """Follow what happens, until the daemon closes the stream. Has no deadline: nothing may happen for days."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        try:
            async with self._session.get("/admin/v1/events", timeout=timeout) as response:
                await _raise_for_error(response)
                async for line in response.content:
                    if line.startswith(b"data:"):
                        yield Event.model_validate_json(line.removeprefix(b"data:"))
        except (aiohttp.ClientError, OSError) as exc:
            raise DaemonUnreachable(str(self._socket), _reason(exc)) from exc

    async def _ask(self, kind: type[T], method: str, path: str, *, deadline_s: float = _ANSWER_TIMEOUT_S, **request: Any) -> T:
        timeout = aiohttp.ClientTimeout(total=deadline_s, sock_connect=_CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(method, path, timeout=timeout, **request) as response:
                await _raise_for_error(response)
                return kind.model_validate_json(await response.read())
        except TimeoutError as exc:
            raise DaemonUnreachable(str(self._socket), f"no answer within {deadline_s:g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise DaemonUnreachable(str(self._socket), _reason(exc)) from exc
        except ValidationError as exc:
            raise DaemonRefused(200, f"{path} was answered with something else; is the daemon another version of axiond?") from exc


def _reason(exc: Exception) -> str:
    cause = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    match cause:
        case FileNotFoundError():
            return "the socket does not exist"
        case ConnectionRefusedError():
            return "the socket is dead, its daemon has gone"
        case PermissionError():
            return "permission denied"
        case asyncio.IncompleteReadError() | aiohttp.ServerDisconnectedError() | ConnectionResetError() | aiohttp.ClientPayloadError():
            return "the daemon went away while answering"
        case OSError() if cause.strerror:
            return cause.strerror
    return str(cause) or type(cause).__name__


async def _raise_for_error(response: aiohttp.ClientResponse) -> None:
    """Errors come as {"error": {"message": ..., "problems": [{"file": ..., "line": ..., ...}, ...]}}."""
    if response.status < 400:
        return
    body = await response.read()
    try:
        error = orjson.loads(body)["error"]
        message, problems = str(error["message"]), tuple(map(_problem, error.get("problems") or ()))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, problems = f"HTTP {response.status}: {body[:200].decode(errors='replace')}", ()
    raise DaemonRefused(response.status, message, problems)


def _problem(parts: Mapping[str, Any]) -> Problem:
    return Problem(Place(parts["file"], parts["line"], parts["column"], parts["field"]), parts["what"], parts["remedy"])
