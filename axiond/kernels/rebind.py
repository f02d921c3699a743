"""Follow the file `cores` in the engine's folder: the daemon moves engines while they run."""

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from vllm.logger import init_logger

from axiond.kernels import threads
from axiond.kernels.memory import prefer

logger = init_logger(__name__)


class Follower:
    """Looks at one file. What it says is done between two steps, when no thread computes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None

    def look(self) -> None:
        """Bind this process anew if the file has changed. Cheap if it has not: one call of the kernel's."""
        try:
            found = self._path.stat()
            if (stamp := (found.st_ino, found.st_mtime_ns)) == self._seen:
                return
            self._seen = stamp
            plan = json.loads(self._path.read_bytes())
            release({*plan["compute"], *plan["others"]})
            threads.bind(plan["compute"])
            # libgomp ends threads that a region does without, and the main one begets new ones: bound as it is, all on its core.
            os.sched_setaffinity(0, plan["compute"])
            prefer(plan["nodes"])
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            # It can compute where it is; the daemon sees where that is.
            logger.warning("axiond: these threads cannot be bound as %s says: %s", self._path, exc)


def release(cpus: Collection[int]) -> None:
    """Let all threads of this process run on *cpus*."""
    for entry in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(entry.name), cpus)
