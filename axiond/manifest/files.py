"""Reads the files of a manifest, each once, within one limit for all of them together."""

import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 4 * 2**20
"""Largest manifest, its includes and `${file:...}` contents counted in: 10,000 models of 400 bytes."""

MAX_FILES = 10_000


class Unreadable(Exception):
    """Why a file could not be taken; whoever asked for it knows the place to blame."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(what, remedy)


TOO_LARGE = Unreadable(f"is too large: a manifest may have {MAX_BYTES / 2**20:g} MiB, includes and ${{file:...}} contents counted in")


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """
    Read a regular file of bounded size; a pipe or device neither blocks nor fills memory.

    Raises:
        Unreadable: it is missing, forbidden, no regular file, or longer than *max_bytes*.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise Unreadable("is a folder, not a file" if stat.S_ISDIR(mode) else "is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise Unreadable("does not exist") from None
    except OSError as exc:
        raise Unreadable(f"cannot be read: {exc.strerror}", f"axiond runs as user id {os.geteuid()}") from exc
    except ValueError as exc:
        raise Unreadable(f"is not a path: {exc}") from exc
    if len(data) > max_bytes:
        raise TOO_LARGE
    return data


def expand_globs(paths: Iterable[Path]) -> list[Path]:
    """
    Replace patterns by the files they match, sorted. Never raises.

    Names that begin with a dot do not match: editors and ConfigMaps use them. What may not be looked at does match: whoever
    reads it tells why not, where leaving it out would silently take models away.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if glob.has_magic(str(path)) and not os.path.exists(path):  # noqa: PTH110  # Path.exists raises for a path too long
            found |= {match: None for match in map(Path, sorted(_glob(str(path)))) if _may_be_file(match)}
        else:
            found[path] = None
    return list(found)


def _glob(pattern: str) -> list[str]:
    with suppress(OSError, ValueError):  # too long, or no path at all
        return glob.glob(pattern, recursive=True)  # noqa: PTH207  # Path.glob takes hidden names in
    return []


def _may_be_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError:
        return True


class Files:
    """
    What one manifest reads.

    *named* collects every file read or looked for and every include pattern: what to watch. *variables* are those of the
    environment that were used.
    *given* holds contents that are not taken from disk.
    """

    def __init__(self, given: Mapping[Path, bytes]) -> None:
        self.named: dict[Path, None] = {}
        self.variables: dict[str, str] = {}
        self._given = given
        self._contents: dict[Path, bytes] = {}
        self._used_bytes = 0

    def read(self, path: Path) -> bytes:
        """Raises Unreadable."""
        self.named[path] = None
        if path not in self._contents:
            if len(self._contents) >= MAX_FILES:
                raise Unreadable(f"is one file too many: a manifest may have {MAX_FILES:,}")
            data = self._given[path] if path in self._given else read_file(path, MAX_BYTES - self._used_bytes)
            self._used_bytes += len(data)
            if self._used_bytes > MAX_BYTES:
                raise TOO_LARGE
            self._contents[path] = data
        return self._contents[path]

    def matches(self, pattern: Path) -> list[Path]:
        self.named[pattern] = None
        return expand_globs([pattern])

    def etag(self) -> str:
        """Sixty-four hex digits over everything read, and every variable used."""
        digest = hashlib.sha256()
        for path, data in sorted(self._contents.items()):
            digest.update(b"%d %s %d " % (len(str(path)), os.fsencode(path), len(data)) + data)
        for name, value in sorted(self.variables.items()):
            digest.update(f"${name} ".encode() + hashlib.sha256(value.encode(errors="surrogateescape")).digest())
        return digest.hexdigest()


def replace_file(path: Path, data: bytes, *, is_secret: bool = False) -> None:
    """
    Replace a file completely or not at all; a reader sees the old or the new one. Raises OSError.

    It keeps its mode and, where that is allowed, its owner. A new one, and one that *is_secret*, is its owner's alone.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and not is_secret:
            before = path.stat()
            temporary.chmod(before.st_mode & 0o7777)
            with suppress(PermissionError):
                os.chown(temporary, before.st_uid, before.st_gid)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
