import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from axiond import log
from axiond.reconcile.state import EngineKey, EngineState


@pytest.fixture
def out() -> Iterator[io.BytesIO]:
    """A place for lines; what configure() changes for the whole process is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.BytesIO()
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(out: io.BytesIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


NAMES = {name: value for name, value in vars(log).items() if name.isupper() and isinstance(value, str)}


def test_names_follow_the_grammar() -> None:
    """Every event constant is `noun.past_tense` in lower case, and none is there twice."""
    assert NAMES
    assert len(set(NAMES.values())) == len(NAMES)
    assert [value for name, value in NAMES.items() if not name.startswith("_") and not re.fullmatch(r"[a-z]+\.[a-z_]+", value)] == []


def test_json_line_begins_with_time_level_event(out: io.BytesIO) -> None:
    """Fields follow; keys, paths, states and exceptions are written as people write them."""
    log.configure("info", "json", file=out)
    structlog.get_logger().info(
        log.ENGINE_CHANGED_STATE, key=EngineKey("m", "0" * 12), state=EngineState.READY, path=Path("/x"), took_s=1.5, pids=(1, 2)
    )
    [line] = lines(out)
    assert list(line)[:3] == ["time", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", str(line.pop("time")))
    assert line == {
        "level": "info", "event": "engine.changed_state",
        "key": "m@000000000000", "state": "ready", "path": "/x", "took_s": 1.5, "pids": [1, 2],
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    ["caf\udc80", 2**80, {EngineKey("m", "d"): 1}, [{("a", "b"): 1}], object(), b"\xff"],
    ids=["lone surrogate", "huge integer", "key of a mapping", "key in a list", "anything", "bytes"],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_value_breaks_a_line(out: io.BytesIO, log_format: log.LogFormat, value: object) -> None:
    """A request can carry anything; logging it neither raises nor loses the line."""
    log.configure("info", log_format, file=out)
    structlog.get_logger().info(log.REQUEST_WAS_LOST, value=value)
    assert out.getvalue().count(b"\n") == 1
    assert b"request.was_lost" in out.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_blanked(out: io.BytesIO, log_format: log.LogFormat) -> None:
    """By field name, inside headers too, and by pydantic's type."""
    log.configure("info", log_format, file=out)
    structlog.get_logger().info(
        log.REQUEST_WAS_LOST, api_key="hunter2", headers={"Authorization": "Bearer hunter2", "Host": "h"}, other=SecretStr("hunter2")
    )
    assert b"hunter2" not in out.getvalue()
    assert b"[redacted]" in out.getvalue()


def test_level_changes_live_for_bound_loggers(out: io.BytesIO) -> None:
    """A logger bound before `set_level()` follows it."""
    log.configure("info", "json", file=out)
    bound = structlog.get_logger().bind(key="k")
    bound.debug(log.ENGINE_CHANGED_STATE)
    log.set_level("debug")
    bound.debug(log.ENGINE_WAS_STARTED)
    log.set_level("error")
    bound.warning(log.ENGINE_CHANGED_STATE)
    assert [line["event"] for line in lines(out)] == ["engine.was_started"]


def test_auto_is_json_where_nobody_looks(out: io.BytesIO) -> None:
    log.configure("info", "auto", file=out)
    structlog.get_logger().info(log.DAEMON_WAS_STARTED)
    assert lines(out)[0]["event"] == "daemon.was_started"


def test_libraries_come_through_at_warning(out: io.BytesIO) -> None:
    """Records of the standard library's logging become events; info is left out, tracebacks are kept."""
    log.configure("info", "json", file=out)
    logging.getLogger("aiohttp.access").info("chatter")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("asyncio").exception("Task %s", "failed")
    [line] = lines(out)
    assert (line["event"], line["level"], line["library"], line["message"]) == ("library.reported", "error", "asyncio", "Task failed")
    assert "ValueError: boom" in str(line["exception"])


def test_warnings_come_through_as_events(out: io.BytesIO) -> None:
    log.configure("info", "json", file=out)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning("old", DeprecationWarning, "f.py", 1)
    assert "DeprecationWarning: old" in str(lines(out)[0]["message"])


def test_a_closed_reader_does_not_raise(out: io.BytesIO) -> None:
    log.configure("info", "json", file=out)
    out.close()
    structlog.get_logger().info(log.DAEMON_WAS_STARTED)
