import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from axiond.errors import SourceError
from axiond.sources.fetch import Progress
from tests.fakes.sources import Fetcher, workers, write_gguf

BF16_BYTES = 2


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


async def test_converted_once(file: Path, tmp_path: Path, fetcher: Fetcher) -> None:
    """The first fetch converts; the next ones find it, by content, whatever the file is called."""
    first = await fetcher(str(file))
    assert fetcher.stages == ["hashing", "reading", "converting", "writing"]
    assert all(progress.done_bytes <= progress.total_bytes for progress in fetcher.told)
    converting = [progress.done_bytes for progress in fetcher.told if progress.stage == "converting"]
    assert converting == sorted(converting)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in first.folder.iterdir()}
    assert json.loads((first.folder / "config.json").read_text())["num_hidden_layers"] == 2
    assert first.weight_bytes == (first.folder / "model.safetensors").stat().st_size > file.stat().st_size // BF16_BYTES // 2
    assert await fetcher(str(file)) == first
    assert fetcher.stages == []
    file.rename(tmp_path / "renamed.gguf")
    assert await fetcher(str(tmp_path / "renamed.gguf")) == first
    assert fetcher.stages == ["hashing"]


async def test_changed_content_is_converted_again(file: Path, fetcher: Fetcher) -> None:
    first = await fetcher(str(file))
    write_gguf(file, seed=1)
    second = await fetcher(str(file))
    assert second.folder != first.folder
    assert (second.folder / "model.safetensors").read_bytes() != (first.folder / "model.safetensors").read_bytes()


async def test_two_conversions_of_one_file_do_not_clash(file: Path, fetcher: Fetcher) -> None:
    other = Fetcher(fetcher.state_dir)
    first, second = await asyncio.gather(fetcher(str(file)), other(str(file)))
    assert first == second
    assert "converting" not in fetcher.stages or "converting" not in other.stages
    assert fetcher.half_made() == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("missing.gguf", "there is no file", id="missing"),
        pytest.param("text.gguf", "is not a GGUF file", id="text"),
        pytest.param("cut.gguf", "damaged", id="cut"),
        pytest.param("alien.gguf", "alien", id="unknown-architecture"),
    ],
)
async def test_a_file_that_cannot_be_converted(name: str, said: str, file: Path, fetcher: Fetcher) -> None:
    (file.parent / "text.gguf").write_text("hello")
    (file.parent / "cut.gguf").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    write_gguf(file.parent / "alien.gguf", architecture="alien")
    with pytest.raises(SourceError, match=said):
        await fetcher(str(file.parent / name))
    assert fetcher.half_made() == []


async def test_cancelled(file: Path, fetcher: Fetcher) -> None:
    """No child and nothing half-made is left, and the next try works."""
    reading = asyncio.Event()
    fetcher.on_progress = lambda progress: reading.set() if progress.stage == "reading" else None
    task = asyncio.create_task(fetcher(str(file)))
    await asyncio.wait_for(reading.wait(), 30)
    assert fetcher.half_made() != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers() == []
    assert fetcher.half_made() == []
    assert (await fetcher(str(file))).weight_bytes > 0


async def test_worker_killed(file: Path, fetcher: Fetcher) -> None:
    """A worker that the kernel kills midway is an error that says so; the next try works."""

    def kill(progress: Progress) -> None:
        if progress.stage == "reading":
            for worker in workers():
                worker.send_signal(signal.SIGKILL)

    fetcher.on_progress = kill
    with pytest.raises(SourceError, match="memory ran out"):
        await fetcher(str(file))
    assert fetcher.half_made() == []
    fetcher.on_progress = lambda progress: None
    assert (await fetcher(str(file))).weight_bytes > 0


async def test_leftovers_of_a_dead_daemon_are_removed(file: Path, fetcher: Fetcher) -> None:
    """What a fetch left when daemon and worker died together goes with the next fetch of that file."""
    resolved = await fetcher(str(file))
    leftover = resolved.folder.with_name(resolved.folder.name + ".partial")
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(bytes(10))
    os.utime(file)
    assert await fetcher(str(file)) == resolved
    assert fetcher.half_made() == []
