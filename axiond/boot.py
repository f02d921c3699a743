"""What a daemon starts from: its manifest, and the last good one."""

from dataclasses import dataclass
from pathlib import Path

import structlog

from axiond import log
from axiond.errors import ManifestError
from axiond.manifest.load import Loaded, load
from axiond.manifest.spec import Manifest
from axiond.manifest.store import LastGood, Stored


@dataclass(frozen=True, slots=True)
class Boot:
    """What there is to start from: the file if it is good, else why not; and the last good manifest if there is one."""

    loaded: Loaded | None
    error: ManifestError | None
    stored: Stored | None

    @property
    def manifest(self) -> Manifest:
        """Raises ManifestError when there is nothing to serve."""
        if self.loaded:
            return self.loaded.manifest
        if self.stored:
            return self.stored.manifest
        assert self.error is not None
        raise self.error


def read_boot(path: Path, store: LastGood) -> Boot:
    """Blocks for milliseconds, and for seconds where there are thousands of models."""
    stored, why_not = store.load()
    if why_not:
        structlog.get_logger().warning(log.LAST_GOOD_WAS_LOADED, problem=why_not)
    try:
        return Boot(load(path), None, stored)
    except ManifestError as exc:
        return Boot(None, exc, stored)
