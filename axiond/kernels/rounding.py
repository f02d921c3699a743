"""Round tables of bfloat16 to 4 bits, some rows at a time: a large vocabulary in float32 takes gigabytes. Pure."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 8192
INT4_GROUP = 32


def round_int4(table: Tensor) -> tuple[Tensor, Tensor]:
    """Round to 0..15, 8 for zero, with a float16 scale for each `INT4_GROUP` of a row."""
    return _concatenated(_int4(rows.float()) for rows in table.split(ROWS))


def _int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    grouped = rows.unflatten(1, (-1, INT4_GROUP))
    largest = torch.maximum(grouped.amax(-1) / 7, grouped.amin(-1) / -8)
    scales = largest.clamp_min(2**-24).half()
    return ((grouped / scales[..., None].float()).round() + 8).clamp(0, 15).to(torch.uint8).flatten(1), scales


def _concatenated(parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    q, scales = zip(*parts, strict=True)
    return torch.cat(q), torch.cat(scales)
