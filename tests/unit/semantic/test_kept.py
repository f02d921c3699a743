"""What was computed of domains comes back from disk as it was."""

import asyncio
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from axiond.manifest.spec import Manifest
from axiond.semantic.encoder import Encoder
from axiond.semantic.index import SemanticIndex
from axiond.semantic.kept import MOST_KEPT, KeptProbes
from axiond.semantic.prepare import Semantics
from axiond.semantic.probe import Point, fit
from tests.fakes.bert import Bert, write_folder

POINTS = [Point("how old is é", "a"), Point("w2 w3", "b"), Point("nothing", "")]
VECTORS = np.eye(3, 4, dtype=np.float32)
PROBE = fit(POINTS, VECTORS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", Bert(), Bert().tensors())


def manifest(model: Path, example: str = "w1 w2") -> Manifest:
    domains = {"a": {"examples": [example], "keywords": ["w9"]}, "b": {"examples": ["w5 w6"]}}
    return Manifest.model_validate({"semantic": {"embedding_model": str(model)}, "domains": domains})


def prepared(kept: Path, wanted: Manifest) -> tuple[SemanticIndex, list[str]]:
    """The index, made by a daemon that starts anew; and what it had to embed."""
    embedded: list[str] = []

    class Watched(Encoder):
        def encode(self, texts, most_tokens=64):
            embedded.extend(texts)
            return super().encode(texts, most_tokens)

    async def fetch(source: str) -> Path:
        return Path(source)

    index = asyncio.run(Semantics(fetch, KeptProbes(kept), Watched.load).prepare(wanted))
    assert index
    return index, embedded


def test_a_second_start_embeds_nothing_and_tells_the_same(tmp_path: Path, model: Path) -> None:
    first, embedded = prepared(tmp_path / "kept", manifest(model))
    assert "w1 w2" in embedded
    second, embedded = prepared(tmp_path / "kept", manifest(model))
    assert embedded == []
    assert second.encoder
    vector = second.encoder.encode(["w1 w5 w9"])[0][0]
    assert second.by_embedding(vector, "w1 w5 w9") == first.by_embedding(vector, "w1 w5 w9")
    assert second.by_keywords("w9") == first.by_keywords("w9")


@pytest.mark.parametrize("change", ["text", "model"])
def test_what_changes_the_outcome_is_computed_again(tmp_path: Path, model: Path, change: str) -> None:
    prepared(tmp_path / "kept", manifest(model))
    if change == "model":
        shutil.rmtree(model)
        write_folder(model, Bert(), Bert().tensors(seed=1))
    _, embedded = prepared(tmp_path / "kept", manifest(model, "w3 w4" if change == "text" else "w1 w2"))
    assert embedded


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", None], ids=["empty", "no-zip", "cut-off"])
def test_what_is_damaged_counts_as_missing(tmp_path: Path, damage: bytes | None) -> None:
    kept = KeptProbes(tmp_path)
    kept.put("x", PROBE)
    path = tmp_path / "x.npz"
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    assert kept.get("x") is None


def test_wherever_the_damage_is_it_is_survived(tmp_path: Path) -> None:
    kept = KeptProbes(tmp_path)
    kept.put("x", PROBE)
    whole = (tmp_path / "x.npz").read_bytes()
    for at in range(len(whole) - 300, len(whole)):  # the directory, which no checksum guards
        (tmp_path / "x.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = kept.get("x")
        assert found is None or found.scores(VECTORS[1], "w2") == PROBE.scores(VECTORS[1], "w2")


def test_what_is_kept_comes_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    kept = KeptProbes(tmp_path / "new")
    kept.put("x", PROBE)
    found = kept.get("x")
    assert found
    assert (found.domains, found.words) == (PROBE.domains, PROBE.words)
    assert found.scores(VECTORS[1], "how old is é") == PROBE.scores(VECTORS[1], "how old is é")
    assert (tmp_path / "new/x.npz").stat().st_mode & 0o777 == 0o600


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    kept = KeptProbes(tmp_path)
    for i in range(MOST_KEPT + 3):
        kept.put(str(i), PROBE)
        os.utime(tmp_path / f"{i}.npz", (i, i))
    kept.put("last", PROBE)
    assert {path.stem for path in tmp_path.iterdir()} == {"last", *(str(i) for i in range(4, MOST_KEPT + 3))}


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = KeptProbes(tmp_path / "file")
    kept.put("x", PROBE)
    assert kept.get("x") is None
