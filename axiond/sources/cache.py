"""
Where fetched models lie, and how they get there whole or not at all.

`STATE/models/{hub,gguf,pypi}/NAME` is a finished model. While it is made, its parts lie in `NAME.partial` and `NAME.lock` is
held; both ends of a crash are covered by the kernel dropping the lock: whoever takes it next, or sweeps, removes the parts.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO

from axiond.errors import SourceError
from axiond.sources.source import choose_weights

HUB_PARTIAL = "blobs/*.incomplete"  # huggingface_hub names its own parts, at random


def models_dir(state_dir: Path, kind: str) -> Path:
    folder = state_dir / "models" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


@contextmanager
def hold(target: Path, before_waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Hold *target*'s lock; yield an empty folder to make it in, which is removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("a") as lock:
        if not _take(lock):
            before_waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_parts(target)
        partial(target).mkdir()
        try:
            yield partial(target)
        finally:
            _remove_parts(target)


def put_in_place(made: Path, target: Path) -> None:
    """Rename what was made, after it has reached the disk."""
    for file in (made, *made.rglob("*")):
        _sync(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    made.rename(target)
    _sync(target.parent)


def sweep(state_dir: Path) -> None:
    """Remove the parts of whatever nobody is making any more. Blocks; never raises: what cannot be removed stays."""
    for lock_path in _locks(state_dir):
        with suppress(OSError), lock_path.open("a") as lock:
            if _take(lock):
                _remove_parts(lock_path.with_suffix(""))


def weight_bytes(folder: Path) -> int:
    """Bytes of weights that an engine reads from this folder; 0 where there are none."""
    files = (PurePosixPath(path.relative_to(folder)) for path in chain(folder.glob("*"), folder.glob("*/*")) if path.is_file())
    return sum((folder / path).stat().st_size for path in choose_weights(files))


def check_folder(source: str, folder: Path) -> None:
    """
    Raises:
        SourceError: vLLM could not open *folder*.
    """
    if not folder.exists():
        raise SourceError(source, f"there is no {folder}")
    if not folder.is_dir():
        raise SourceError(source, f"{folder} is not a folder; name the folder that holds config.json, or a .gguf file")
    if not (folder / "config.json").is_file():
        raise SourceError(source, f"{folder} holds no config.json, so it is not a model that vLLM can open")


def check_space(source: str, folder: Path, needed_bytes: int) -> None:
    """
    Raises:
        SourceError: the disk of *folder* has no room.
    """
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise SourceError(source, f"needs {needed_bytes / 2**30:.2f} GiB in {folder}, but only {free_bytes / 2**30:.2f} GiB are free")


def _locks(state_dir: Path) -> list[Path]:
    with suppress(OSError):
        return list((state_dir / "models").glob("*/*.lock"))
    return []


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_parts(target: Path) -> None:
    shutil.rmtree(partial(target), ignore_errors=True)
    for part in target.glob(HUB_PARTIAL):
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
