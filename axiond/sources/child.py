"""
The worker's half of a fetch: dies with the daemon, tells progress and its result as JSON lines on its standard output.

Its reports, twice a second whatever it does, are also its sign of life.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from axiond.errors import SourceError

PR_SET_PDEATHSIG = 1
REPORT_INTERVAL_S = 0.5
NICENESS = 10  # engines on the same cores are answering requests meanwhile
OOM_SCORE = 500  # and are the last that should die when memory runs out


_look: Callable[[], tuple[str, int, int]] = lambda: ("starting", 0, 0)  # the stage, bytes done, bytes in all


def run(work: Callable[..., dict[str, Any]]) -> None:
    """Do a worker's *work* with the arguments of the command line (the daemon's process id first) and tell how it ended."""
    parent, *arguments = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):
        sys.exit(0)  # the daemon died before the line above: nobody is listening
    os.nice(NICENESS)
    with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write(str(OOM_SCORE))
    threading.Thread(target=_report_for_ever, daemon=True).start()
    try:
        _tell(work(*arguments))
    except SourceError as error:
        _tell({"error": error.problem})
    except OSError as error:
        _tell({"error": f"{error.strerror}: {error.filename}" if error.filename else str(error)})


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def progress(stage: str, total_bytes: int = 0, done_bytes: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Report how far a stage is, while the body runs. What was done once is not taken back, though *done_bytes* may."""
    global _look
    most_bytes = 0

    def look() -> tuple[str, int, int]:
        nonlocal most_bytes
        most_bytes = max(most_bytes, min(done_bytes(), total_bytes))
        return stage, most_bytes, total_bytes

    _look = look
    _report()
    try:
        yield
        most_bytes = total_bytes
        _report()
    finally:
        _look = lambda: (stage, most_bytes, total_bytes)


def report(stage: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
    """Report a stage that is looked at no further."""
    global _look
    _look = lambda: (stage, done_bytes, total_bytes)
    _report()


def report_waiting() -> None:
    """Say that another worker is making what this one was asked for."""
    report("waiting")


def _report() -> None:
    stage, done_bytes, total_bytes = _look()
    _tell({"stage": stage, "done_bytes": done_bytes, "total_bytes": total_bytes})


def _report_for_ever() -> None:
    while True:
        time.sleep(REPORT_INTERVAL_S)
        with suppress(OSError):  # a file that was looked at was renamed just then
            _report()


def _tell(message: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")  # one write, so that two threads' lines never mix
