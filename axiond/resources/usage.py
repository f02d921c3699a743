"""What processes take of the memory, as the kernel counts it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KIB = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """
    The memory of some processes: *bytes* is their proportional set size, in which shared pages count once.

    *own_bytes* are those that no file backs, so that the kernel cannot take them back; *peak_bytes* is the most *bytes* ever was.
    """

    bytes: int = 0
    own_bytes: int = 0
    peak_bytes: int = 0


NOTHING = Usage()


def usage(pids: Iterable[int]) -> Usage:
    """Look at processes; those that are gone count nothing. Slow for the kernel: call it off the loop."""
    found = [_of_process(Path(f"/proc/{pid}")) for pid in pids]
    return Usage(sum(one.bytes for one in found), sum(one.own_bytes for one in found), sum(one.peak_bytes for one in found))


def _of_process(process: Path) -> Usage:
    try:
        rollup, status = (_sizes(process / name) for name in ("smaps_rollup", "status"))
    except (OSError, ValueError):
        return NOTHING
    now = rollup.get("Pss", 0)
    # Only resident pages have a high-water mark; what was above today's was the process's own.
    above = max(0, status.get("VmHWM", 0) - status.get("VmRSS", 0))
    return Usage(now, rollup.get("Pss_Anon", now) + rollup.get("Pss_Shmem", 0), now + above)


def _sizes(file: Path) -> dict[str, int]:
    """The lines of a file that give a size in kB. A process may call itself whatever it likes."""
    lines = (line.split() for line in file.read_text(errors="replace").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * KIB for words in lines if len(words) == 3 and words[2] == "kB"}
