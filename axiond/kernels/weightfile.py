"""
A file of tensors that are mapped, not read: every process that maps it shares its pages with all others.

    page 0      magic, and where the description is, with its checksum
    ...         tensors, each from the start of a page; those of 2 MiB and more from a multiple of that, so that huge pages fit
    last        the description, as JSON

It is written under another name and renamed when it is whole and on the disk.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAGIC = b"axiond's packed weights, 1\n"
PREFIX = struct.Struct(f"<{len(MAGIC)}sQQ32s")
NEW = ".new"
PAGE, HUGE_PAGE = 4096, 2 << 20
MADV_POPULATE_READ = 22  # since Linux 5.14; the module mmap has no name for it


class Damaged(Exception):
    """A file is not what it should be; the message is a sentence's end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of bytes. *about* is whatever its owner has to know; *check* is the checksum of its beginning."""

    offset: int
    size: int
    check: int
    about: Any


class Writer:
    """Writes one file. While it lives, nobody else writes the same one or takes it for a remnant."""

    def __init__(self, path: Path) -> None:
        """Raise OSError if it cannot be written, BlockingIOError if another process is writing it."""
        self._path, self._new = path, path.with_suffix(NEW)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._new, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it until now may have given it its name, and others have mapped it.
            if not _is_still(self._file, self._new):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            os.truncate(self._file, 0)
        except OSError:
            os.close(self._file)
            raise
        self._entries: dict[str, Entry] = {}
        self.size = PAGE

    def add(self, name: str, data: Tensor, about: Any) -> None:
        """Write a tensor of bytes. Raises OSError."""
        align = HUGE_PAGE if data.numel() >= HUGE_PAGE else PAGE
        offset = -(-self.size // align) * align
        view = memoryview(data.numpy())
        _write(self._file, view, offset)
        self._entries[name] = Entry(offset, len(view), zlib.crc32(view[:PAGE]), about)
        self.size = offset + len(view)

    def finish(self, about: Any) -> None:
        """Complete the file and give it its name, when it is on the disk. Raises OSError."""
        entries = {name: [entry.offset, entry.size, entry.check, entry.about] for name, entry in self._entries.items()}
        text = json.dumps({"about": about, "entries": entries}).encode()
        _write(self._file, memoryview(text), self.size)
        _write(self._file, memoryview(PREFIX.pack(MAGIC, self.size, len(text), hashlib.sha256(text).digest())), 0)
        os.fsync(self._file)
        self._new.replace(self._path)
        os.close(self._file)

    def abandon(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self._new.unlink()
        os.close(self._file)


class Reader:
    """A whole file, mapped. Writing to its tensors changes them for this process only."""

    def __init__(self, path: Path) -> None:
        """Raise OSError if there is no such file, Damaged if it is none of these."""
        with path.open("rb") as file:
            self.about, self.entries = _described(file)
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for name, entry in self.entries.items():
            if zlib.crc32(self._memory[entry.offset : entry.offset + min(entry.size, PAGE)]) != entry.check:
                raise Damaged(f"{name} in it is damaged")
        with contextlib.suppress(OSError):
            self._memory.madvise(MADV_POPULATE_READ)

    def tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        return torch.frombuffer(self._memory, dtype=torch.uint8, offset=entry.offset, count=entry.size)


def remove_remnant(new: Path) -> None:
    """Remove what somebody has begun to write who is not alive any more. Raises OSError."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError), new.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(file.fileno(), new):
            new.unlink()


def _is_still(file: int, path: Path) -> bool:
    """Whether an open file has this name: it may have been renamed or removed before it was locked."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def about(path: Path) -> Any:
    """What finish() was told. Raises OSError or Damaged."""
    with path.open("rb") as file:
        return _described(file)[0]


def _described(file: Any) -> tuple[Any, dict[str, Entry]]:
    size = os.fstat(file.fileno()).st_size
    begin = file.read(PREFIX.size)
    if len(begin) < PREFIX.size:
        raise Damaged("it is cut off")
    magic, at, length, digest = PREFIX.unpack(begin)
    if magic != MAGIC:
        raise Damaged("it is of another kind")
    if at + length != size:
        raise Damaged("it is cut off")
    file.seek(at)
    text = file.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise Damaged("its description is damaged")
    found = json.loads(text)
    return found["about"], {name: Entry(*entry) for name, entry in found["entries"].items()}


def _write(file: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done
