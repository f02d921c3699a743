"""What an engine prints: a bounded tail for people, and the lines that say what went wrong. Pure."""

import re
import signal
from collections import deque
from collections.abc import Iterable

# Begins the host's last line.
ENDED = "axiond: engine "
TAIL_LINES, LONGEST_LINE = 60, 500

# "(EngineCore pid=12) ERROR 11-23 06:50:09 [core.py:1490] ", in any part.
PREFIX = re.compile(r"^(\(\w[^()]*pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ERROR = re.compile(
    r"^([\w.]+\.)?\w*(Error|Exception|Interrupt|Exit|Failure)(:|$)|^Value error, |^(Fatal|Killed|Segmentation fault)|^\S+: error: "
)
# They only say that another process or another line has the cause.
WRAPPERS = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|Worker failed with error '|Executor failed|EngineDeadError"
    r"|EngineGenerationError|\d+ validation errors? for|KeyboardInterrupt|CancelledError|BrokenPipeError"
)


class Output:
    """The last lines of an engine, and its error lines, which outlive the tail."""

    def __init__(self) -> None:
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._errors: dict[str, None] = {}

    def add(self, line: str) -> None:
        # A progress bar is many versions of one line.
        line = COLOUR.sub("", line.rstrip().rpartition("\r")[2])
        self._tail.append(line[:LONGEST_LINE])
        if len(self._errors) < TAIL_LINES:
            self._errors |= {error[:LONGEST_LINE]: None for error in error_lines([line])}

    @property
    def tail(self) -> tuple[str, ...]:
        return tuple(self._tail)

    @property
    def ending(self) -> str | None:
        """The host's last words, if it had any."""
        return next((line.removeprefix(ENDED) for line in reversed(self._tail) if line.startswith(ENDED)), None)

    @property
    def errors(self) -> tuple[str, ...]:
        return error_lines(self._errors)


def error_lines(lines: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """
    Pick the lines that name a cause: the first ones, without vLLM's prefixes and without repetitions.

    The first is the deepest, because each process wraps the error of the one below. Errors that only point to
    another one are left out unless there is nothing else.
    """
    stripped = (PREFIX.sub("", line).strip() for line in lines)
    found = list(dict.fromkeys(line for line in stripped if ERROR.match(line)))
    causes = [line for line in found if not WRAPPERS.search(line)]
    return tuple((causes or found)[:most])


def how_ended(code: int) -> str:
    """Put a return code as subprocess gives it into words."""
    if code >= 0:
        return f"exited with code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
