"""What manifest tables are made of: change classes, and the types of fields that several tables share. Inert."""

import re
from enum import StrEnum
from typing import Annotated, Any

import durationpy
import re2
from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, StringConstraints

CHANGE_KEY = "x-axiond-change"
MAX_CORES = 4096
PERCENT = r"^(100|[1-9][0-9]?)%$"
REGEX_BYTES = 2**19  # memory of an expression; with more, a text that thwarts RE2's cache takes it twice as long
MOST_REPEATS = 64  # with these a text of 16 KiB takes 5 ms at worst

_RE2 = re2.Options()
_RE2.log_errors, _RE2.max_mem = False, REGEX_BYTES
# A class of characters, an escape, any character, one beyond ASCII: one step each.
_ATOM = re.compile(r"\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*+\]|\\[pP](?:\{\^?\w+\}|\w)|\\x\{\w+\}|\\.|\.|[^\x00-\x7f]", re.DOTALL)
_COUNT = re.compile(r"\{\d+(?:,\d*)?\}")


class Change(StrEnum):
    LIVE = "live"
    ENGINE = "engine"
    DAEMON = "daemon"


def _field(change: Change) -> Any:
    def make(default: Any = ..., description: str = "", **constraints: Any) -> Any:
        return Field(default, description=description, json_schema_extra={CHANGE_KEY: change.value}, **constraints)

    return make


live, engine, daemon = _field(Change.LIVE), _field(Change.ENGINE), _field(Change.DAEMON)


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", name):
        raise ValueError("a name starts with a letter or digit and holds only letters, digits and . _ : / -")
    return name


def _check_cpu_list(cores: str) -> str:
    for part in cores.split(","):
        if not (bounds := re.fullmatch(r"0*([0-9]+?)(?:-0*([0-9]+?))?", part)):
            raise ValueError('cores are written like "0-3,8"')
        low, high = (int(bound[:9]) for bound in (bounds[1], bounds[2] or bounds[1]))
        if not low <= high < MAX_CORES:
            raise ValueError(f'"{part[:40]}" is no range of cores: they count from 0 to {MAX_CORES - 1}, the lower one first')
    return cores


def _check_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as exc:
        raise ValueError(f"not a regular expression: {exc}") from exc
    except RecursionError:
        raise ValueError("not a regular expression: nested too deeply") from None
    return pattern


def _check_linear_regex(pattern: str) -> str:
    try:
        re2.compile(pattern, _RE2)
    except re2.error as exc:
        what = exc.args[0].decode() if isinstance(exc.args[0], bytes) else str(exc)
        raise ValueError(f"not a regular expression of RE2, which knows no look-around and no back-references: {what}") from exc
    if (repeats := _repeats(pattern)) > MOST_REPEATS:
        raise ValueError(
            f"its counted repetitions come to {repeats} steps, which could cost every request milliseconds; {MOST_REPEATS} are allowed:"
            ' write "+", "*" or "{n,}" instead of large ones'
        )
    return pattern


def _seconds(written: Any) -> Any:
    """Read a duration like "10m" or "1h30m"; a number is in seconds already."""
    if not isinstance(written, str):
        return written
    try:
        return durationpy.from_str(written).total_seconds()
    except durationpy.DurationError:
        raise ValueError('a duration is written like "45s", "10m" or "1h30m", or as a number of seconds') from None


def _check_budget(written: Any) -> Any:
    if isinstance(written, str) and "%" in written and not re.fullmatch(PERCENT, written):
        raise ValueError('a share is written like "80%", from 1% to 100%')
    return written


def _repeats(pattern: str) -> int:
    """How many steps RE2 adds to *pattern* where it writes counted repetitions out: any of them may be alive at every byte."""
    plain = _ATOM.sub("x", pattern)
    try:
        return int(re2.compile(plain, _RE2).programsize - re2.compile(_COUNT.sub("", plain)).programsize)
    except re2.error:  # what was quoted is none any more
        return int(re2.compile(pattern, _RE2).programsize)


Name = Annotated[str, AfterValidator(_check_name)]
Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str), Field(ge=0, le=366 * 86400)]
Percent = Annotated[str, StringConstraints(pattern=PERCENT)]
# Percent first: a ByteSize would read "80%" as 80 bytes.
MemoryBudget = Annotated[Percent | ByteSize, Field(union_mode="left_to_right"), BeforeValidator(_check_budget)]
CpuList = Annotated[str, AfterValidator(_check_cpu_list)]
Regex = Annotated[str, AfterValidator(_check_regex)]
LinearRegex = Annotated[str, AfterValidator(_check_linear_regex)]
