"""
Log set-up and the names of events.

`configure()` once, `set_level()` whenever the manifest says so; everyone else calls `structlog.get_logger()` and logs an event
constant with fields. One line per event on standard error: for people on a terminal, JSON otherwise.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO, Final, Literal

import orjson
import structlog
from structlog.typing import EventDict, Processor

DAEMON_WAS_STARTED: Final = "daemon.was_started"
DAEMON_IS_WAITING: Final = "daemon.is_waiting"
DAEMON_BECAME_READY: Final = "daemon.became_ready"
DAEMON_BEGAN_STOPPING: Final = "daemon.began_stopping"
DAEMON_WAS_STOPPED: Final = "daemon.was_stopped"

MANIFEST_WAS_ACCEPTED: Final = "manifest.was_accepted"
MANIFEST_WAS_REJECTED: Final = "manifest.was_rejected"
MANIFEST_WAS_STORED: Final = "manifest.was_stored"
MANIFEST_WAS_NOT_STORED: Final = "manifest.was_not_stored"
MEMORY_WAS_NOT_SEEN: Final = "memory.was_not_seen"
MEASURED_WAS_NOT_STORED: Final = "measured.was_not_stored"
LAST_GOOD_WAS_LOADED: Final = "manifest.last_good_was_loaded"
WATCHER_FAILED: Final = "watcher.failed"

GENERATION_WAS_PUBLISHED: Final = "generation.was_published"
GENERATION_WAS_ROLLED_BACK: Final = "generation.was_rolled_back"
GENERATION_WAS_SETTLED: Final = "generation.was_settled"
CONDITION_CHANGED: Final = "condition.changed"
ACTION_FAILED: Final = "action.failed"

ENGINE_CHANGED_STATE: Final = "engine.changed_state"
ENGINE_FAILED_UNEXPECTEDLY: Final = "engine.failed_unexpectedly"
ENGINE_WAS_SACRIFICED: Final = "engine.was_sacrificed"
ENGINE_WAS_STARTED: Final = "engine.was_started"
ENGINES_WERE_LEFT: Final = "engines.were_left"
ENGINE_WAS_FOUND: Final = "engine.was_found"
ENGINE_WAS_REBOUND: Final = "engine.was_rebound"
CORES_WERE_REFUSED: Final = "cores.were_refused"
ENGINE_PRINTED: Final = "engine.printed"
FORK_SERVER_FAILED: Final = "forkserver.failed"

SOURCE_FETCH_PROGRESSED: Final = "source.fetch_progressed"
SOURCE_FETCH_FAILED: Final = "source.fetch_failed"

REQUEST_WAS_SERVED: Final = "request.was_served"
REQUEST_WAS_LOST: Final = "request.was_lost"
REQUEST_WAS_RETRIED: Final = "request.was_retried"
SHADOW_WAS_ANSWERED: Final = "shadow.was_answered"
SHADOW_FAILED: Final = "shadow.failed"
LIBRARY_REPORTED: Final = "library.reported"

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]

_LEVEL_NUMBERS: Final[Mapping[str, int]] = {
    "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "exception": 40, "critical": 50, "fatal": 50, "notset": 0,
}  # fmt: skip
_SECRET_FIELDS: Final = frozenset({"api_key", "api_keys", "authorization", "cookie", "password", "secret", "token", "x-api-key"})
_REDACTED: Final = "[redacted]"


class _Threshold:
    """Drop what is below the level. A processor, not a wrapper class, so that loggers bound long ago follow a change."""

    number = _LEVEL_NUMBERS["info"]

    def __call__(self, _logger: object, method: str, event: EventDict) -> EventDict:
        if _LEVEL_NUMBERS[method] < self.number:
            raise structlog.DropEvent
        return event


class _Sink:
    """Write lines to one file. A reader that went away (`axiond serve 2>&1 | head`) must not end the daemon."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def msg(self, line: bytes | str) -> None:
        data = line.encode(errors="backslashreplace") if isinstance(line, str) else line
        with suppress(OSError, ValueError):
            self._file.write(data + b"\n")
            self._file.flush()

    debug = info = warn = warning = error = exception = critical = fatal = msg


class _LibraryHandler(logging.Handler):
    """Pass records of the standard library's logging on as events."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(50, record.levelno // 10 * 10)
        structlog.get_logger().log(
            level, LIBRARY_REPORTED, library=record.name, message=record.getMessage(), exc_info=record.exc_info or None
        )


_threshold = _Threshold()


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Blank the fields that carry secrets, also inside mappings such as request headers."""
    for name, value in event.items():
        if name.lower() in _SECRET_FIELDS:
            event[name] = _REDACTED
        elif isinstance(value, Mapping):
            event[name] = redact(None, "", {str(key): item for key, item in value.items()})
    return event


def render_json(_logger: object, _method: str, event: EventDict) -> bytes:
    """One JSON object; what JSON does not know is written as its `str()`."""
    line = {"time": event.pop("time", None), "level": event.pop("level", None), "event": event.pop("event", None), **event}
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError:  # a lone surrogate, an integer beyond 64 bits, a key that is no string
        return json.dumps(line, default=str, skipkeys=True).encode()


def _processors(is_json: bool, has_colors: bool) -> list[Processor]:
    console = structlog.dev.ConsoleRenderer(colors=has_colors, exception_formatter=structlog.dev.plain_traceback)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time" if is_json else "timestamp")
    tail: list[Processor] = [structlog.processors.format_exc_info, render_json] if is_json else [console]
    return [_threshold, structlog.processors.add_log_level, stamp, redact, *tail]


def configure(level: LogLevel, log_format: LogFormat = "auto", *, file: BinaryIO | None = None) -> None:
    """
    Send events to standard error.

    Args:
        level: least important level that is shown; `set_level()` changes it later, for existing loggers too.
        log_format: auto is console on a terminal, else JSON lines.
        file: where to write instead of standard error, binary.
    """
    target = file or sys.stderr.buffer
    is_terminal = target.isatty()
    set_level(level)
    structlog.configure(
        processors=_processors(log_format == "json" or (log_format == "auto" and not is_terminal), is_terminal),
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=lambda *_: _Sink(target),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryHandler()], force=True)
    logging.captureWarnings(True)


def set_level(level: LogLevel) -> None:
    """Change the least important level that is shown, at once and for every logger."""
    _threshold.number = _LEVEL_NUMBERS[level]
