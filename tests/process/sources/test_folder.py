import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from axiond.errors import SourceError
from axiond.sources.fetch import Progress, Resolved, _follow
from tests.fakes.sources import CONFIG, Fetcher


async def test_a_folder_is_used_where_it_is(tmp_path: Path, fetcher: Fetcher) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(5000))
    assert await fetcher(str(tmp_path)) == Resolved(tmp_path, weight_bytes=1000)


async def test_a_folder_without_weights_weighs_nothing(tmp_path: Path, fetcher: Fetcher) -> None:
    """Served with random weights, as benchmarks do."""
    (tmp_path / "config.json").write_bytes(CONFIG)
    assert await fetcher(str(tmp_path)) == Resolved(tmp_path, weight_bytes=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("missing", "there is no ", id="missing"),
        pytest.param("file", "is not a folder", id="file"),
        pytest.param("empty", "holds no config.json", id="empty"),
    ],
)
async def test_a_folder_that_is_no_model(name: str, said: str, tmp_path: Path, fetcher: Fetcher) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=said):
        await fetcher(str(tmp_path / name))


async def test_a_revision_needs_a_hub(tmp_path: Path, fetcher: Fetcher) -> None:
    with pytest.raises(SourceError, match="Hugging Face repository only"):
        await fetcher(str(tmp_path), "main")


@contextlib.contextmanager
def no_free_descriptors() -> Iterator[None]:
    """As when thousands of connections are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/" + "x" * 300, "cannot be had: File name too long: /xxx"),
        ("~nosuchuser/x", "there is no user of the name in ~nosuchuser"),
        ("~nosuchuser/x.gguf", "there is no user of the name in ~nosuchuser"),
    ],
    ids=["long", "user of a folder", "user of a file"],
)
async def test_a_path_that_the_system_refuses(source: str, said: str, fetcher: Fetcher) -> None:
    with pytest.raises(SourceError) as caught:
        await fetcher(source)
    assert said in caught.value.problem


async def test_a_folder_that_may_not_be_entered(tmp_path: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may enter any, so the refusal is made up."""

    def refuse(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(SourceError, match=f"cannot be had: Permission denied: {tmp_path}"):
        await fetcher(str(tmp_path))


async def test_a_worker_that_cannot_be_started(fetcher: Fetcher) -> None:
    fetcher.state_dir.mkdir()
    with no_free_descriptors(), pytest.raises(SourceError, match="cannot be had: Too many open files"):
        await fetcher("owner/name")


async def test_what_libraries_print_is_no_message() -> None:
    """Whatever it begins with."""
    output = asyncio.StreamReader(limit=1000)
    said = [b"{", b'{"stage": 1}', b'{"stage": "x", "done_bytes": "1", "total_bytes": 2}', b'{"a": 1}', b"[1]", b'{"path": 3}', b"x" * 5000]
    output.feed_data(b"\n".join([*said, b'{"stage": "s", "done_bytes": 1, "total_bytes": 2}', b'{"path": "/m"}', b""]))
    output.feed_eof()
    told: list[Progress] = []
    assert await _follow(output, told.append) == {"path": "/m"}
    assert told == [Progress("s", 1, 2)]
