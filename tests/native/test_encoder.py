"""A small BERT of random weights on every level, against the same forward in float64, and against the plain kernels to the last bit."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.fakes.bert import Bert, Tensors, forward
from tests.native.probe import Probe

VECTOR = ("neon", "avx2", "avx512vnni")  # the levels that bring operations of their own
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 1, 70)  # around the 16 lanes, the 16 queries and the blocks of 64 rows
BERTS = {
    "mean": Bert(),
    "first-token": replace(Bert(), pools_mean=False),
    "positions-from-2": replace(Bert(), first_position=2),
    "heads-of-16-groups-of-32": replace(Bert(), hidden=96, heads=6, intermediate=96),
    "heads-of-64-groups-of-128": replace(Bert(), hidden=128, intermediate=256, layers=1),
}


def texts(bert: Bert) -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(0, bert.vocabulary, length).tolist() for length in LENGTHS]


def ask(probe: Probe, level: str, bert: Bert, tensors: Tensors, ids: list[list[int]]) -> NDArray[np.float32]:
    flat = torch.from_numpy(np.concatenate([tensor.ravel() for tensor in tensors.values()]))
    tokens = torch.tensor([token for text in ids for token in text], dtype=torch.int32)
    lengths = torch.tensor([len(text) for text in ids], dtype=torch.int32)
    numbers = {name: int(value) for name, value in asdict(bert).items()}
    result, used = probe.ask("encode", (tokens, lengths, flat), isa=level, type=0, **numbers)
    assert used == next((name for name in VECTOR if level.startswith(name[:4])), "portable")
    return np.frombuffer(result, np.float32).reshape(len(ids), -1)


@pytest.mark.parametrize("bert", BERTS.values(), ids=BERTS)
def test_every_level_has_the_same_bits_and_they_are_right(probe: Probe, levels: tuple[str, ...], bert: Bert) -> None:
    tensors, ids = bert.tensors(), texts(bert)
    plain, *others = (ask(probe, level, bert, tensors, ids) for level in levels)
    for other in others:
        assert np.array_equal(plain.view(np.uint32), other.view(np.uint32))
    as_rounded = np.stack([forward(bert, tensors, text, rounds=True) for text in ids])
    exact = np.stack([forward(bert, tensors, text) for text in ids])
    assert np.abs(plain - as_rounded).max() <= 0.04 / np.sqrt(bert.hidden)  # a few activations round to their other neighbour
    assert (plain * exact).sum(1).min() >= 0.9998


def test_a_text_does_not_depend_on_the_others(probe: Probe, levels: tuple[str, ...]) -> None:
    """Nor on the batches that many texts are cut into."""
    bert = Bert()
    tensors, ids = bert.tensors(), texts(bert) * 3
    together = ask(probe, levels[-1], bert, tensors, ids)
    alone = np.concatenate([ask(probe, levels[-1], bert, tensors, [text]) for text in ids[: len(LENGTHS)]])
    assert np.array_equal(together, np.concatenate([alone] * 3))


def test_no_tokens_are_no_direction(probe: Probe, levels: tuple[str, ...]) -> None:
    bert = Bert()
    vectors = ask(probe, levels[-1], bert, bert.tensors(), [[], [1, 2], []])
    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert not ask(probe, levels[-1], bert, bert.tensors(), [[]]).any()
