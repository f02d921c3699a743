"""From checkpoints' formats, to what the kernels are packed from: against torch's plain arithmetic."""

import pytest
import torch
from torch import Tensor

from axiond.kernels.reference import dequantize
from axiond.kernels.unpack import arranged, kernel_group, nibbles, problem

AWQ = [0, 2, 4, 6, 1, 3, 5, 7]
SPLIT = [(128, 128, 128), (64, 512, 64), (32, 96, 32), (256, 512, 128), (96, 192, 32), (-1, 896, 128), (-1, 576, 64), (-1, 96, 32)]


@pytest.mark.parametrize(("group_size", "k", "group"), SPLIT)
def test_groups_are_split_into_the_kernels(group_size: int, k: int, group: int) -> None:
    assert kernel_group(group_size, k) == group
    assert problem("uint4", torch.bfloat16, group_size, k) is None


PROBLEMS = {
    "kind": (("uint8b128", torch.bfloat16, 128, 512), "its weights are uint8b128, and the kernels take uint4, uint4b8, int4"),
    "activations": (("uint4", torch.int8, 128, 512), "its activations are torch.int8, and the kernels take bfloat16, float16 and float32"),
    "group": (("uint4", torch.bfloat16, 48, 96), "its group size 48 is no multiple of 32"),
    "no group at all": (("uint4", torch.bfloat16, 0, 96), "its group size 0 is no multiple of 32"),
    "channel": (("uint4", torch.bfloat16, -1, 80), "its 80 inputs share one scale, but are no multiple of 32"),
    "partition": (("int4", torch.float16, 128, 448), "its 448 inputs are no multiple of the group size 128"),
}


@pytest.mark.parametrize(("layer", "words"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_cannot_be_taken_has_a_reason(layer: tuple[str, torch.dtype, int, int], words: str) -> None:
    assert problem(*layer) == words


def test_nibbles_come_lowest_first() -> None:
    words = torch.tensor([[0x76543210, 0xFEDCBA98 - 2**32]], dtype=torch.int64).int()
    assert nibbles(words).tolist() == [list(range(16))]
    assert nibbles(words, AWQ).tolist() == [[0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]]


def packed(values: Tensor) -> Tensor:
    """Eight neighbours of a row in one int32, the first in the lowest bits; rows are filled up with zeros."""
    filled = torch.nn.functional.pad(values.long(), (0, -values.shape[1] % 8))
    words = (filled.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


@pytest.mark.parametrize("group_size", [32, 128, 256, -1])
@pytest.mark.parametrize(("kind", "has_zeros"), [("words", True), ("words", False), ("bytes", False), ("awq", True)])
def test_arranged_weights_mean_what_they_did(kind: str, has_zeros: bool, group_size: int) -> None:
    """19 columns: the last word of zero points is not full."""
    random = torch.Generator().manual_seed(1)
    n, k = (24 if kind == "awq" else 19), 512
    size = k if group_size == -1 else group_size
    q = torch.randint(16, (n, k), generator=random)
    scales = torch.rand(n, k // size, generator=random)
    zeros = torch.randint(16, scales.shape, generator=random) if has_zeros else None
    order = AWQ if kind == "awq" else slice(None)
    weight = {"words": packed(q), "bytes": (q - 8).to(torch.int8), "awq": packed(in_order(q.T, order)).T}[kind]
    found = arranged(weight, scales, None if zeros is None else packed(in_order(zeros.T, order)), group_size, kind == "awq")
    assert found.q is weight
    meant = dequantize(q, found.scales, found.zero_points, found.group)
    assert torch.equal(meant, dequantize(q, scales, zeros, size))
    assert found.group == kernel_group(group_size, k)


def in_order(values: Tensor, order: list[int] | slice) -> Tensor:
    """Each eight neighbours of a row in this order; rows are filled up with zeros."""
    return torch.nn.functional.pad(values, (0, -values.shape[1] % 8)).unflatten(1, (-1, 8))[..., order].flatten(1)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"weights \(16, 64\) of group size 32 do not go with scales \(16, 3\), zero points None"):
        arranged(torch.zeros(16, 8, dtype=torch.int32), torch.ones(16, 3), None, 32)
