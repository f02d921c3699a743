"""The last good manifest on disk, so that a broken file at boot still serves something."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from axiond.errors import StoreError
from axiond.manifest.files import Unreadable, read_file, replace_file
from axiond.manifest.spec import Manifest

FORMAT = 1
MAX_STORED_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Stored:
    manifest: Manifest
    generation: int
    etag: str


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    generation: int
    etag: str
    manifest: dict[str, Any]


class LastGood:
    """
    One file in *folder* for each path of a manifest, readable by its owner only: it holds API keys.

    Where it is must not depend on what the manifest says, because it is needed when the manifest is broken.
    Both methods block for milliseconds.
    """

    def __init__(self, folder: Path, manifest: Path) -> None:
        self.path = folder / f"last-good-{hashlib.sha256(os.fsencode(manifest)).hexdigest()[:12]}.json"

    def save(self, manifest: Manifest, generation: int, etag: str) -> None:
        """
        Replace what is stored, completely or not at all, whatever fails.

        Raises:
            StoreError: it could not be written; what was stored before is still there.
        """
        content = {"format": FORMAT, "generation": generation, "etag": etag, "manifest": _dump(manifest)}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(content).encode(), is_secret=True)
        except OSError as exc:
            raise StoreError(str(self.path), f"cannot be written: {exc.strerror}") from exc

    def load(self) -> tuple[Stored | None, str]:
        """Return what is stored. If there is none, the second item says why; it is empty if nothing was ever stored."""
        try:
            content = _Content.model_validate_json(read_file(self.path, MAX_STORED_BYTES))
            if content.format != FORMAT:
                return None, f"{self.path} has format {content.format}, written by another version of axiond; this one reads {FORMAT}"
            return Stored(Manifest.model_validate(content.manifest), content.generation, content.etag), ""
        except Unreadable as exc:
            return None, f"{self.path} {exc.what}" if os.path.lexists(self.path) else ""
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            return None, f"{self.path} is damaged or from another version of axiond: {'.'.join(map(str, first['loc']))}: {first['msg']}"


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the daemon may keep things before it has read its manifest: systemd's state folder, else the user's."""
    if assigned := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(assigned)
    if home := environ.get("XDG_STATE_HOME"):
        return Path(home) / "axiond"
    return Path(environ.get("HOME", "/var/lib")) / ".local/state/axiond"


def _dump(manifest: Manifest) -> dict[str, Any]:
    """As `model_dump()`, with the API keys themselves: they have to be served again."""
    content = manifest.model_dump(mode="json")
    content["server"]["api_keys"] = _plain(manifest.server.api_keys)
    content["server"]["key_groups"] = {group: _plain(keys) for group, keys in manifest.server.key_groups.items()}
    for written, route in zip(content["routes"], manifest.routes, strict=True):
        if route.when:
            written["when"]["api_key"] = _plain(route.when.api_key)
    return content


def _plain(keys: Iterable[SecretStr]) -> list[str]:
    return [key.get_secret_value() for key in keys]
