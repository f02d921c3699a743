"""Dummy weights, for models of which only the shape matters: random, the same at every start, and quick."""

from functools import cache

import torch
from torch import Tensor

LOW, HIGH, SEED = -1e-3, 1e-3, 1234
NUMBERS = 1 << 20


def fill(tensor: Tensor) -> None:
    """
    Fill a tensor of floating point numbers with random ones; leave any other as it is.

    vLLM draws each number, on one thread: 16 seconds for 1.5 billion. Here a million are drawn, and repeated.
    """
    if tensor.device.type == "meta":
        return
    value = getattr(tensor, "dummy_weight_value", None)
    if value is not None:
        tensor.fill_(value)
    elif torch.is_floating_point(tensor):
        data = tensor.data
        flat = data.view(-1) if data.is_contiguous() else torch.empty(data.shape, dtype=data.dtype).view(-1)
        numbers = drawn(data.dtype)
        whole = len(flat) // NUMBERS * NUMBERS
        flat[:whole].view(-1, NUMBERS).copy_(numbers)
        flat[whole:].copy_(numbers[: len(flat) - whole])
        if flat.data_ptr() != data.data_ptr():
            data.copy_(flat.view(data.shape))


@cache
def drawn(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.empty(NUMBERS, dtype=torch.float32).uniform_(LOW, HIGH, generator=generator).to(dtype)
