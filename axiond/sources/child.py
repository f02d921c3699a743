"""The worker's half of a fetch: dies with the daemon, tells progress and its result as JSON lines on its standard output."""

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from axiond.errors import SourceError

PR_SET_PDEATHSIG = 1
REPORT_INTERVAL_S = 0.5
NICENESS = 10  # engines on the same cores are answering requests meanwhile
OOM_SCORE = 500  # and are the last that should die when memory runs out


def run(work: Callable[..., dict[str, Any]]) -> None:
    """Do a worker's *work* with the arguments of the command line (the daemon's process id first) and tell how it ended."""
    parent, *arguments = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):
        sys.exit(0)  # the daemon died before the line above: nobody is listening
    os.nice(NICENESS)
    with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write(str(OOM_SCORE))
    try:
        _tell(work(*arguments))
    except SourceError as error:
        _tell({"error": error.problem})
    except OSError as error:
        _tell({"error": f"{error.strerror}: {error.filename}" if error.filename else str(error)})


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def progress(stage: str, total_bytes: int, done_bytes: Callable[[], int]) -> Iterator[None]:
    """Report a stage, again and again while the body runs: also a sign of life to the daemon."""
    is_over = threading.Event()

    def report_until_over() -> None:
        while not is_over.wait(REPORT_INTERVAL_S):
            report(stage, done_bytes(), total_bytes)

    report(stage, done_bytes(), total_bytes)
    reporter = threading.Thread(target=report_until_over, daemon=True)
    reporter.start()
    try:
        yield
        report(stage, total_bytes, total_bytes)
    finally:
        is_over.set()
        reporter.join()


def report(stage: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
    _tell({"stage": stage, "done_bytes": min(done_bytes, total_bytes), "total_bytes": total_bytes})


def _tell(message: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")  # one write, so that two threads' lines never mix
