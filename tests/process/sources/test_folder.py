from pathlib import Path

import pytest

from axiond.errors import SourceError
from axiond.sources.fetch import Resolved
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
