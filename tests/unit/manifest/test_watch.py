"""Real files, changed in every way that editors, shells and container tools know."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from axiond.errors import ManifestError
from axiond.manifest import watch as watch_module
from axiond.manifest.files import Unreadable, read_file
from axiond.manifest.load import load
from axiond.manifest.watch import SETTLE_S, Identity, fingerprint, folders_of, is_being_written, watch

DEADLINE_S = 10
NEVER_S = 3600


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="axw") as name:
        yield Path(name)


class Watched:
    """What a daemon would know: the content at the last wake-up. *texts* is every content it acted on."""

    def __init__(self, path: Path) -> None:
        self.path, self.texts = path, [""]
        self.files: tuple[Path, ...] = ()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        with suppress(Unreadable):
            self.texts.append(read_file(self.path).decode())
        with suppress(ManifestError):
            self.files = load(self.path, {}).files
        self._woken.set()

    async def until(self, text: str) -> float:
        """Wait until a wake-up saw *text*; return how long it took."""
        began = time.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            while self.texts[-1] != text:
                self._woken.clear()
                await self._woken.wait()
        return time.monotonic() - began


@asynccontextmanager
async def watching(path: Path, poll_s: float = NEVER_S) -> AsyncIterator[Watched]:
    """Begin with the first wake-up, end with a cancellation that nothing holds up."""
    seen = Watched(path)
    first = path.read_text() if path.exists() else ""
    task = asyncio.create_task(watch(path, lambda: seen.files, seen.wake, poll_s))
    await seen.until(first)
    yield seen
    assert not task.done()
    task.cancel()
    async with asyncio.timeout(1):
        with suppress(asyncio.CancelledError):
            await task


def replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def keep_backup(path: Path, text: str) -> None:
    """As vim does it: the old file is moved away, a new one is written."""
    path.rename(path.with_name(f"{path.name}~"))
    path.write_text(text)


def write_in_chunks(path: Path, text: str) -> None:
    with path.open("w") as file:
        for character in text:
            file.write(character)
            file.flush()


def delete_first(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def keep_size_and_time(path: Path, text: str) -> None:
    before = path.stat()
    assert len(text) == before.st_size
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


EDITS = {edit.__name__: edit for edit in (replace, keep_backup, write_in_chunks, delete_first, keep_size_and_time, Path.write_text)}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_an_edit_is_seen_again_and_again(folder: Path, edit: Callable[[Path, str], object]) -> None:
    path = folder / "a.toml"
    path.write_text("# 0\n")
    async with watching(path) as seen:
        for number in (1, 2, 3):
            edit(path, f"# {number}\n")
            await seen.until(f"# {number}\n")
    assert seen.texts == ["", "# 0\n", "# 1\n", "# 2\n", "# 3\n"]


async def test_an_edit_takes_effect_within_a_tenth_of_a_second(folder: Path) -> None:
    """The median of ten: a busy machine may hold up one of them."""
    path = folder / "a.toml"
    path.write_text("")
    async with watching(path) as seen:
        took_s = []
        for number in range(10):
            path.write_text(f"# {number}\n")
            took_s.append(await seen.until(f"# {number}\n"))
    assert sorted(took_s)[5] < 0.1


async def test_a_config_map_is_swapped(folder: Path) -> None:
    """Kubernetes: `a.toml -> ..data/a.toml`, `..data -> ..1`, and `..data` is replaced in one rename."""
    for number in (1, 2, 3):
        (folder / f"..{number}").mkdir()
        (folder / f"..{number}" / "a.toml").write_text(f"# {number}\n")
    (folder / "..data").symlink_to("..1")
    (folder / "a.toml").symlink_to("..data/a.toml")
    async with watching(folder / "a.toml") as seen:
        for number in (2, 3):
            (folder / "..tmp").symlink_to(f"..{number}")
            (folder / "..tmp").rename(folder / "..data")
            await seen.until(f"# {number}\n")
            shutil.rmtree(folder / f"..{number - 1}")
        replace(folder / "..3/a.toml", "# in place\n")
        await seen.until("# in place\n")


async def test_a_symlink_to_another_folder_is_followed(folder: Path) -> None:
    for name in ("here", "there"):
        (folder / name).mkdir()
    (folder / "there/a.toml").write_text("# 0\n")
    (folder / "here/a.toml").symlink_to("../there/a.toml")
    async with watching(folder / "here/a.toml") as seen:
        replace(folder / "there/a.toml", "# 1\n")
        await seen.until("# 1\n")
        replace(folder / "here/a.toml", "# 2\n")
        await seen.until("# 2\n")


async def test_a_file_that_appears_later_is_seen(folder: Path) -> None:
    async with watching(folder / "a.toml") as seen:
        (folder / "a.toml").write_text("# 1\n")
        await seen.until("# 1\n")


async def test_a_folder_that_appears_later_is_seen(folder: Path) -> None:
    path = folder / "not/yet/a.toml"
    async with watching(path) as seen:
        path.parent.mkdir(parents=True)
        path.write_text("# 1\n")
        await seen.until("# 1\n")


async def test_a_folder_may_go_and_come_back(folder: Path) -> None:
    path = folder / "conf/a.toml"
    path.parent.mkdir()
    path.write_text("# 0\n")
    async with watching(path) as seen:
        for number in (1, 2):
            shutil.rmtree(path.parent)
            path.parent.mkdir()
            path.write_text(f"# {number}\n")
            await seen.until(f"# {number}\n")


async def test_a_folder_may_be_exchanged_for_another(folder: Path) -> None:
    path = folder / "conf/a.toml"
    for name, text in (("conf", "# 0\n"), ("next", "# 1\n")):
        (folder / name).mkdir()
        (folder / name / "a.toml").write_text(text)
    async with watching(path, poll_s=0.05) as seen:
        (folder / "conf").rename(folder / "old")
        (folder / "next").rename(folder / "conf")
        await seen.until("# 1\n")
        path.write_text("# 2\n")
        await seen.until("# 2\n")


async def test_what_reports_no_event_is_seen_by_the_poll(folder: Path) -> None:
    """A hard link stands for a bind mount: the file is written through a folder that nobody watches."""
    (folder / "conf").mkdir()
    (folder / "a.toml").write_text("# 0\n")
    path = folder / "conf/a.toml"
    path.hardlink_to(folder / "a.toml")
    async with watching(path, poll_s=0.05) as seen:
        (folder / "a.toml").write_text("# 1\n")
        await seen.until("# 1\n")


async def test_a_burst_ends_with_its_last_edit(folder: Path) -> None:
    path = folder / "a.toml"
    path.write_text("")
    async with watching(path) as seen:
        for number in range(200):
            (replace if number % 2 else Path.write_text)(path, f"# {number}\n")
            await asyncio.sleep(0)
        await seen.until("# 199\n")
    assert len(seen.texts) < 20


async def test_a_change_that_is_taken_back_at_once_wakes_no_one(folder: Path) -> None:
    path = folder / "a.toml"
    path.write_text("# 0\n")
    async with watching(path) as seen:
        path.write_text("# 1\n")
        path.write_text("# 0\n")
        path.with_name("other").write_text("x")
        path.write_text("# 2\n")
        await seen.until("# 2\n")
    assert "# 1\n" not in seen.texts


async def test_a_file_that_is_still_being_written_is_waited_for(folder: Path) -> None:
    """What is there already may be a valid manifest with half of the models; only the writer knows that more will come."""
    path = folder / "a.toml"
    path.write_text("# 0\n")
    async with watching(path) as seen:
        with path.open("w") as file:
            for number in range(5):
                file.write(f"# line {number}\n")
                file.flush()
                await asyncio.sleep(3 * SETTLE_S)
        await seen.until("".join(f"# line {number}\n" for number in range(5)))
    assert len(seen.texts) == 3


async def test_includes_variables_and_new_matches_are_watched(folder: Path) -> None:
    """Files named by the last load count, missing ones and patterns too."""
    for name in ("models.d", "keys"):
        (folder / name).mkdir()
    path = folder / "a.toml"
    path.write_text('include = ["models.d/*.toml"]\n[models.a]\nsource = "${file:keys/k}"\n')
    (folder / "keys/k").write_text("x")
    seen = asyncio.Queue[str]()
    files: tuple[Path, ...] = ()

    def wake() -> None:
        nonlocal files
        try:
            loaded = load(path, {})
            files = loaded.files
            seen.put_nowait(" ".join(f"{name}={spec.source}" for name, spec in loaded.manifest.models.items()))
        except ManifestError as exc:
            files = exc.files
            seen.put_nowait("refused")

    async def until(text: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await seen.get() != text:
                pass

    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch(path, lambda: files, wake, NEVER_S))
        await until("a=x")
        (folder / "keys/k").write_text("y")
        await until("a=y")
        (folder / "models.d/b.toml").write_text('[models.b]\nsource = "z"\n')
        await until("a=y b=z")
        path.write_text('include = ["late/c.toml"]\n')
        await until("refused")
        (folder / "late").mkdir()
        (folder / "late/c.toml").write_text('[models.c]\nsource = "w"\n')
        await until("c=w")
        task.cancel()


async def test_nothing_that_goes_wrong_ends_the_watching(folder: Path) -> None:
    path = folder / "conf/a.toml"
    path.parent.mkdir()
    path.write_text("# 0\n")
    async with watching(path, poll_s=0.05) as seen:
        path.unlink()
        path.mkdir()
        await asyncio.sleep(5 * SETTLE_S)
        path.rmdir()
        path.symlink_to(path.name)
        await asyncio.sleep(5 * SETTLE_S)
        path.unlink()
        os.mkfifo(path)
        await asyncio.sleep(5 * SETTLE_S)
        shutil.rmtree(path.parent)
        path.parent.write_text("no folder")
        await asyncio.sleep(5 * SETTLE_S)
        path.parent.unlink()
        path.parent.mkdir()
        path.write_text("# 1\n")
        await seen.until("# 1\n")


def test_a_writer_is_noticed_and_not_disturbed(folder: Path) -> None:
    """Asking may collide with a writer that opens just then: neither may be hurt."""
    path = folder / "a.toml"
    path.write_text("0")
    assert not is_being_written(path)
    with path.open("a"):
        assert is_being_written(path)
    assert not is_being_written(path)
    assert not is_being_written(folder / "gone")
    program = f"for n in range(2000): open({str(path)!r}, 'w').write(str(n))"
    with subprocess.Popen([sys.executable, "-c", program]) as writer:
        while writer.poll() is None:
            is_being_written(path)
    assert writer.returncode == 0
    assert path.read_text() == "1999"


def test_the_fingerprint_covers_contents_patterns_and_absence(folder: Path) -> None:
    files = (folder / "a.toml", folder / "*.toml", folder / "key")
    prints = [fingerprint(files)]
    for change in (
        lambda: (folder / "a.toml").write_text("1"),
        lambda: (folder / "b.toml").write_text("1"),
        lambda: (folder / "key").mkdir(),
        lambda: (folder / "b.toml").rename(folder / "c.toml"),
        lambda: (folder / "c.toml").write_text("2"),
    ):
        change()
        prints.append(fingerprint(files))
    assert len(set(prints)) == 6
    os.utime(folder / "a.toml")
    (folder / ".hidden.toml").write_text("x")
    assert fingerprint(reversed(files)) == prints[-1]


FOLDERS = {
    "plain": ("conf/a.toml", {"conf"}),
    "missing": ("gone/far/a.toml", {"."}),
    "file link": ("conf/link.toml", {"conf", "data"}),
    "folder link": ("linked/a.toml", {".", "data", "linked"}),
    "chain": ("conf/chain.toml", {"conf", "data"}),
    "loop": ("conf/loop.toml", {"conf"}),
    "dots": ("data/../conf/a.toml", {"conf"}),
}


@pytest.mark.parametrize(("path", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_every_folder_that_decides_what_a_path_means_is_watched(folder: Path, path: str, expected: set[str]) -> None:
    for name in ("conf", "data"):
        (folder / name).mkdir()
    (folder / "data/a.toml").touch()
    (folder / "conf/link.toml").symlink_to(folder / "data/a.toml")
    (folder / "conf/chain.toml").symlink_to("link.toml")
    (folder / "conf/loop.toml").symlink_to("loop.toml")
    (folder / "linked").symlink_to("data")
    assert {found for found, _, _ in folders_of([folder / path])} == {(folder / name) for name in expected}


UNUSUAL = ["a\0b.toml", "a\0/*.toml", "x" * 300 + "*.toml", "x" * 5000, "\ud800/*.toml", "\udc80"]


@pytest.mark.parametrize("name", UNUSUAL, ids=range(len(UNUSUAL)))
def test_paths_that_the_system_refuses_are_watched_like_missing_ones(folder: Path, name: str) -> None:
    paths = [folder / "a.toml", folder / name]
    assert {identity[0] for identity in folders_of(paths)} >= {folder}
    assert fingerprint(paths) == fingerprint(paths)


def test_a_link_into_itself_has_an_end(folder: Path) -> None:
    (folder / "a").symlink_to("a/b")
    assert folder in {identity[0] for identity in folders_of([folder / "a/x"])}


async def test_an_include_of_no_path_does_not_end_the_watching(folder: Path) -> None:
    path = folder / "a.toml"
    path.write_text('include = ["a\\u0000b.toml", "a\\u0000/*.toml"]\n')
    async with watching(path, poll_s=0.05) as seen:
        with pytest.raises(ManifestError) as caught:
            load(path, {})
        seen.files = caught.value.files
        path.write_text("[models]\n")
        await seen.until("[models]\n")


async def test_a_look_that_fails_is_told_and_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.toml"
    path.write_text("[models]\n")
    failures = [OSError(23, "Too many open files in system"), RuntimeError("can't start new thread")]

    def fail_at_first(files: Iterable[Path]) -> frozenset[Identity]:
        if failures:
            raise failures.pop(0)
        return folders_of(files)

    monkeypatch.setattr(watch_module, "folders_of", fail_at_first)
    with capture_logs() as logs:
        async with watching(path, poll_s=0.01) as seen:
            await seen.until("[models]\n")
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("watcher.failed", "error")] * 2
    assert "Too many open files" in logs[0]["problem"]
