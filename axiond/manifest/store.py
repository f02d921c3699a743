"""The last good manifest, kept across restarts of the daemon."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from axiond.manifest.spec import Manifest

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Stored:
    manifest: Manifest
    generation: int
    etag: str


class LastGood:
    """
    One file for each manifest path. It holds the manifest whole, secrets included, and is readable by its owner only.

    Where it is must not depend on what the manifest says, because it is needed when the manifest is broken.
    """

    def __init__(self, folder: Path, manifest: Path) -> None:
        self.path = folder / f"last-good-{hashlib.sha256(os.fsencode(manifest)).hexdigest()[:12]}.json"

    def save(self, manifest: Manifest, generation: int, etag: str) -> None:
        """Replace the stored manifest in one step. Blocks on the disk for some milliseconds."""
        document = {"format": FORMAT, "generation": generation, "etag": etag, "manifest": manifest.model_dump(mode="python")}
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
            try:
                json.dump(document, file, default=_plain)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self.path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def load(self) -> tuple[Stored | None, str]:
        """The stored manifest, or None and why: empty when there never was one."""
        try:
            document = json.loads(self.path.read_bytes())
            if document["format"] != FORMAT:
                return None, f"{self.path} has format {document['format']}, not {FORMAT}"
            return Stored(Manifest.model_validate(document["manifest"]), document["generation"], document["etag"]), ""
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as exc:
            return None, f"{self.path} cannot be read: {exc}"


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the daemon may keep things before it has read its manifest: systemd's state folder, else the user's."""
    if assigned := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(assigned)
    if home := environ.get("XDG_STATE_HOME"):
        return Path(home) / "axiond"
    return Path(environ.get("HOME", "/var/lib")) / ".local/state/axiond"


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
