"""Wake-ups when a manifest's files change, whoever changes them and however."""

import asyncio
import errno
import fcntl
import hashlib
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog
from watchfiles import awatch

from axiond import log
from axiond.manifest.files import Unreadable, expand_globs, read_file

STEP_MS = 10
SETTLE_S = 0.02
MAX_RESTLESS_S = 1.0
MAX_WRITING_S = 30.0
RECHECK_S = 0.25
MAX_SYMLINKS = 40  # as the kernel: a link into itself makes ever longer paths

Identity = tuple[Path, int, int]


async def watch(path: Path, files: Callable[[], Iterable[Path]], wake: Callable[[], None], poll_s: float = 5.0) -> None:
    """
    Call *wake* once now, and again whenever contents have changed and come to rest.

    Runs until cancelled. Folders report events; beside that everything is compared every *poll_s*, which survives a
    folder that is gone, unreadable or silent.

    Args:
        path: the root file; it need not exist.
        files: what the last load named, `Loaded.files` or `ManifestError.files`; asked anew at every look.
        wake: must not block. It may be called without need when the set of files has changed.
    """
    watcher = _Watcher(lambda: (path, *files()), wake, poll_s)
    while True:
        try:
            await watcher.until_folders_change()
        except* (OSError, RuntimeError, ValueError) as group:  # no descriptors, no threads, or what no one thought of
            structlog.get_logger().error(log.WATCHER_FAILED, problem=repr(group.exceptions[0]))
            await asyncio.sleep(poll_s)


class _Watcher:
    """What it has *seen* outlives the folders it listens to."""

    def __init__(self, paths: Callable[[], Iterable[Path]], wake: Callable[[], None], poll_s: float) -> None:
        self._paths, self._wake, self._poll_s = paths, wake, poll_s
        self._seen = ""

    async def until_folders_change(self) -> None:
        changed = asyncio.Event()
        folders = await asyncio.to_thread(folders_of, self._paths())
        async with asyncio.TaskGroup() as group:
            listener = group.create_task(_listen([folder for folder, _, _ in folders], changed.set))
            await asyncio.sleep(0)  # now it listens: what changes from here on sets the event
            while await asyncio.to_thread(folders_of, self._paths()) == folders:
                changed.clear()
                is_new = await asyncio.to_thread(fingerprint, self._paths()) != self._seen
                if is_new:
                    self._seen = await _settle(self._paths)
                    self._wake()
                await _wait(changed, RECHECK_S if is_new else self._poll_s)  # after a wake the load may name other files
            listener.cancel()


def fingerprint(files: Iterable[Path]) -> str:
    """Hash the contents of files and of what patterns match now; a file that cannot be read counts with its reason. Never raises."""
    digest = hashlib.sha256()
    for path in sorted(set(expand_globs(files))):
        try:
            content = read_file(path)
        except Unreadable as exc:
            content = exc.what.encode()
        digest.update(str(path).encode(errors="surrogatepass") + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def folders_of(files: Iterable[Path]) -> frozenset[Identity]:
    """
    Find every folder whose entries decide what the paths mean: their own, and those of all symlinks on the way.

    A folder that does not exist is replaced by the nearest one above that does. Device and inode tell a folder from its
    successor of the same name. Never raises.
    """
    found: set[Identity] = set()
    todo = [(Path(os.path.abspath(path)), 0) for path in files]  # noqa: PTH100  # Path.absolute keeps "..", whose parents mean nothing
    seen: set[Path] = set()
    while todo:
        path, followed = todo.pop()
        if path in seen or followed > MAX_SYMLINKS:
            continue
        seen.add(path)
        found |= _existing(path.parent)
        for part in (path, *path.parents):
            with suppress(OSError, ValueError):
                target = part.parent / part.readlink()
                found |= _existing(part.parent)
                todo.append((Path(os.path.abspath(target / path.relative_to(part))), followed + 1))  # noqa: PTH100
    return frozenset(found)


def is_being_written(path: Path) -> bool:
    """
    Tell whether any process holds a file open for writing.

    The kernel grants a read lease only when none does. It asks for our own file or CAP_LEASE; where it refuses to say,
    the answer is no, and only the settle time protects from a half-written file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default, unlike SIGIO, if a writer comes just now
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return exc.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


async def _settle(paths: Callable[[], Iterable[Path]]) -> str:
    """Wait until two looks agree and nobody writes; return the fingerprint. Waits no longer than the limits."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    before, _ = await asyncio.to_thread(_look, paths())
    while True:
        await asyncio.sleep(SETTLE_S)
        now, is_written = await asyncio.to_thread(_look, paths())
        waited_s = loop.time() - began
        if waited_s > MAX_WRITING_S or (not is_written and (now == before or waited_s > MAX_RESTLESS_S)):
            return now
        before = now


def _look(files: Iterable[Path]) -> tuple[str, bool]:
    files = expand_globs(files)
    return fingerprint(files), any(map(is_being_written, files))


def _existing(folder: Path) -> set[Identity]:
    for candidate in (folder, *folder.parents):
        with suppress(OSError, ValueError):
            info = candidate.stat()
            return {(candidate, info.st_dev, info.st_ino)}
    return set()


async def _listen(folders: list[Path], changed: Callable[[], None]) -> None:
    """Call *changed* at every event. Ends where folders cannot be watched: the poll goes on without."""
    if not folders:
        return
    with suppress(OSError, RuntimeError):
        async for _ in awatch(*folders, watch_filter=None, debounce=100, step=STEP_MS, recursive=False, ignore_permission_denied=True):
            changed()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
