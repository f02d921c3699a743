"""A small BERT with random weights: its tensors, its folder as sentence-transformers writes it, and its forward in float64."""

import json
from dataclasses import dataclass
from math import erf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

Numbers = NDArray[np.float64]
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Bert:
    vocabulary: int = 40
    positions: int = 80
    first_position: int = 0
    hidden: int = 64
    intermediate: int = 160
    layers: int = 2
    heads: int = 2
    pools_mean: bool = True

    def tensors(self, seed: int = 0) -> Tensors:
        """Random ones, in the order in which the encoder reads them."""
        random = np.random.default_rng(seed)
        hidden, wide = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, hidden),
            "embeddings.position_embeddings.weight": (self.positions, hidden),
            "embeddings.token_type_embeddings.weight": (1, hidden),
            **_norm("embeddings", hidden),
        }
        for i in range(self.layers):
            layer = f"encoder.layer.{i}"
            for name in ("query", "key", "value"):
                shapes |= _linear(f"{layer}.attention.self.{name}", hidden, hidden)
            shapes |= _linear(f"{layer}.attention.output.dense", hidden, hidden) | _norm(f"{layer}.attention.output", hidden)
            shapes |= _linear(f"{layer}.intermediate.dense", wide, hidden) | _linear(f"{layer}.output.dense", hidden, wide)
            shapes |= _norm(f"{layer}.output", hidden)
        size = {2: lambda shape: shape[1] ** -0.5, 1: lambda shape: 0.1}
        tensors = {name: random.standard_normal(shape, np.float32) * np.float32(size[len(shape)](shape)) for name, shape in shapes.items()}
        for name in tensors:
            if name.endswith("LayerNorm.weight"):
                tensors[name] += 1
        return tensors


def _norm(name: str, n: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.LayerNorm.weight": (n,), f"{name}.LayerNorm.bias": (n,)}


def _linear(name: str, n: int, k: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n, k), f"{name}.bias": (n,)}


def forward(bert: Bert, tensors: Tensors, ids: list[int], *, rounds: bool = False) -> Numbers:
    """One text's unit vector. With *rounds*, what linear layers multiply is first rounded as native/linear/linear.h says."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}

    def linear(x: Numbers, name: str) -> Numbers:
        weight = t[f"{name}.weight"]
        if rounds:
            group = next(size for size in (128, 64, 32) if weight.shape[1] % size == 0)
            weight = rounded(weight, weight.shape[1])
            x = rounded(x, group)
        return np.asarray(x @ weight.T + t[f"{name}.bias"])

    def norm(x: Numbers, name: str) -> Numbers:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(x * t[f"{name}.LayerNorm.weight"] + t[f"{name}.LayerNorm.bias"])

    places = bert.first_position + np.arange(len(ids))
    x = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.position_embeddings.weight"][places]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for i in range(bert.layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{name}").reshape(len(ids), bert.heads, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        wide = linear(x, f"{layer}.intermediate.dense")
        x = norm(x + linear(wide * (1 + np.vectorize(erf)(wide / np.sqrt(2))) / 2, f"{layer}.output.dense"), f"{layer}.output")
    pooled = x.mean(0) if bert.pools_mean else x[0]
    return np.asarray(pooled / np.linalg.norm(pooled))


def rounded(x: Numbers, group: int) -> Numbers:
    parts = x.reshape(len(x), -1, group)
    scale = np.abs(parts).max(-1, keepdims=True) / 127
    return np.asarray((np.rint(parts / scale) * scale).reshape(x.shape))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(36))]


def write_folder(
    folder: Path, bert: Bert, tensors: Tensors, *, architecture: str = "BertModel", dtype: str = "F32", prefix: str = ""
) -> Path:
    """A sentence-transformers folder; its tokenizer knows w0 to w35."""
    (folder / "1_Pooling").mkdir(parents=True)
    modules = [
        {"type": f"sentence_transformers.models.{name}", "path": path} for name, path in (("Transformer", ""), ("Pooling", "1_Pooling"))
    ]
    config = {
        "architectures": [architecture], "hidden_size": bert.hidden, "intermediate_size": bert.intermediate, "hidden_act": "gelu",
        "num_hidden_layers": bert.layers, "num_attention_heads": bert.heads, "layer_norm_eps": 1e-12, "vocab_size": bert.vocabulary,
        "max_position_embeddings": bert.positions, "type_vocab_size": 1, "pad_token_id": bert.first_position - 1,
    }  # fmt: skip
    pooling = {"pooling_mode_cls_token": not bert.pools_mean, "pooling_mode_mean_tokens": bert.pools_mean}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_safetensors(folder / "model.safetensors", {prefix + name: value for name, value in tensors.items()}, dtype)
    return folder


def write_safetensors(path: Path, tensors: Tensors, dtype: str) -> None:
    narrow = {"F32": lambda x: x.tobytes(), "F16": lambda x: x.astype(np.float16).tobytes(), "BF16": _bf16}[dtype]
    header, data = {}, b""
    for name, value in tensors.items():
        content = narrow(value)
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _bf16(x: NDArray[np.float32]) -> bytes:
    return (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def narrowed(tensors: Tensors, dtype: str) -> Tensors:
    """What is left of tensors after they were written in *dtype*."""
    match dtype:
        case "F16":
            return {name: value.astype(np.float16).astype(np.float32) for name, value in tensors.items()}
        case "BF16":
            return {name: (value.view(np.uint32) >> 16 << 16).view(np.float32) for name, value in tensors.items()}
    return tensors
