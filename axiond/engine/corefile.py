"""The file `cores` in an engine's folder: where it runs, for EngineCore to follow and for the next daemon to know."""

import contextlib
from pathlib import Path

from axiond.numa import move_memory
from axiond.resources.affinity import confine
from axiond.resources.cores import ANYWHERE, CORE_PLAN, CorePlan

NAME = "cores"


def read(folder: Path) -> CorePlan:
    """The plan that was last written; none of any core if there is none."""
    try:
        return CORE_PLAN.validate_json((folder / NAME).read_bytes())
    except (OSError, ValueError):
        return ANYWHERE


def write(folder: Path, plan: CorePlan) -> None:
    """Raises OSError."""
    draft = folder / f"{NAME}.new"
    draft.write_bytes(CORE_PLAN.dump_json(plan))
    draft.replace(folder / NAME)


def follow(folder: Path, pids: tuple[int, ...], old: CorePlan, new: CorePlan) -> None:
    """
    Move the processes of an engine to the cores of *new*, and what they hold to its memory nodes.

    The threads that compute are EngineCore's own to bind, before its next step; until then they may run on all of these cores.

    Raises:
        OSError: the kernel refuses.
    """
    bound = {frozenset({cpu}) for cpu in new.compute} - {old.cores}
    for pid in pids:
        confine(pid, new.cores, bound)
    write(folder, new)
    if old.nodes and new.nodes and old.nodes != new.nodes:
        for pid in pids:
            # No more than slow if it fails.
            with contextlib.suppress(OSError):
                move_memory(pid, old.nodes, new.nodes)
