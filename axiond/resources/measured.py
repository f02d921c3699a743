"""What engines of each digest took, kept across restarts of the daemon."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from axiond.manifest.files import replace_file

FILE = "measured.json"
FORMAT = 1
MOST_DIGESTS = 256
RECENT = 0.7


@dataclass(frozen=True, slots=True)
class Measured:
    """
    Proportional set sizes of an engine's processes, and how long its start took; 0 and None if never seen.

    *ready_bytes* when it became ready, *load_peak_bytes* the most until then, *most_bytes* the most since.
    """

    ready_bytes: int = 0
    load_peak_bytes: int = 0
    most_bytes: int = 0
    load_s: float | None = None

    def after_start(self, ready_bytes: int, load_peak_bytes: int, load_s: float) -> "Measured":
        """With one more start: the newest alone counts for memory, so that a leak is forgotten, and most for the time."""
        seconds = load_s if self.load_s is None else RECENT * load_s + (1 - RECENT) * self.load_s
        return Measured(ready_bytes, max(ready_bytes, load_peak_bytes), ready_bytes, round(seconds, 3))

    def after_sample(self, used_bytes: int) -> "Measured":
        return replace(self, most_bytes=max(self.most_bytes, used_bytes))


NEVER = Measured()


class MeasuredStore:
    """
    A small file of JSON, replaced whole. A file that is broken or cannot be written costs only what it remembered.

    Without a folder it remembers for its own life.
    """

    def __init__(self, state_dir: Path | None = None) -> None:
        self._path = state_dir / FILE if state_dir else None
        self._known = _read(self._path) if self._path else {}
        self._is_written = True

    def get(self, digest: str) -> Measured:
        return self._known.get(digest, NEVER)

    def put(self, digest: str, measured: Measured) -> None:
        """Remember; the digests that were put longest ago are forgotten first."""
        if self._known.get(digest) == measured:
            return
        self._known.pop(digest, None)
        self._known[digest] = measured
        while len(self._known) > MOST_DIGESTS:
            del self._known[next(iter(self._known))]
        self._is_written = False

    def forget_growth(self, digest: str) -> None:
        """What its engines grew to is not what the next one has to have room for."""
        if known := self._known.get(digest):
            self.put(digest, replace(known, most_bytes=known.ready_bytes))

    def save(self) -> None:
        """Write what has changed. Blocks; raises OSError."""
        if self._path and not self._is_written:
            self._is_written = True
            engines = {digest: asdict(measured) for digest, measured in list(self._known.items())}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps({"format": FORMAT, "engines": engines}, indent=1).encode())


def _read(path: Path) -> dict[str, Measured]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        raw = json.loads(path.read_bytes())
        if isinstance(raw, dict) and raw.get("format") == FORMAT and isinstance(raw.get("engines"), dict):
            known = {str(digest): _measured(entry) for digest, entry in list(raw["engines"].items())[-MOST_DIGESTS:]}
            return {digest: measured for digest, measured in known.items() if measured != NEVER}
    return {}


def _measured(entry: Any) -> Measured:
    if not isinstance(entry, Mapping):
        return NEVER
    sizes = (entry.get(name) for name in ("ready_bytes", "load_peak_bytes", "most_bytes"))
    ready, load_peak, most = (size if type(size) is int and 0 <= size < 2**60 else 0 for size in sizes)
    load_s = entry.get("load_s")
    return Measured(ready, load_peak, most, float(load_s) if isinstance(load_s, int | float) and 0 <= load_s < 1e6 else None)
