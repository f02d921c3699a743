"""What a model's folder says of its size: read from the headers of its safetensors files, and from its config.json where there are none."""

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from axiond.sources.source import choose_weights

LONGEST_HEADER_BYTES = 100 * 2**20  # as safetensors itself has it
BITS_OF_A_WORD = 32
TYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
PACKED = ("qweight", "weight_packed")
BESIDE_PACKED = ("qzeros", "scales", "g_idx", "weight_scale", "weight_zero_point", "weight_shape")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """
    A model's size. Weights are counted in numbers, unless the name says bytes.

    *plain* are those of linear layers in floating point, *rounded* of those with 4 bits, whose scales stand for *group* each;
    *table* is the embedding's, *head* the output layer's if it has its own. *span* is the sum of the linear layers' inputs
    and outputs, which is what adapters grow with. *stored_bytes* lie on the disk, 0 if nothing does.
    """

    plain: int = 0
    rounded: int = 0
    group: int = 128
    table: int = 0
    head: int = 0
    other_bytes: int = 0
    span: int = 0
    stored_bytes: int = 0
    hidden: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    max_tokens: int = 0
    has_kv_cache: bool = True


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what there is to know. Blocks; never raises: what cannot be read counts nothing, and vLLM will say why."""
    config = _table(_json_of(folder / "config.json"))
    files = (PurePosixPath(path.relative_to(folder)) for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file())
    chosen = [folder / path for path in choose_weights(files)]
    stored_bytes = sum(path.stat().st_size for path in chosen)
    headers = [header for path in chosen if path.suffix == ".safetensors" and (header := _header(path))]
    expected, shape = of_config(config), _shape(config)
    found = _of_tensors(headers, _group(config)) if headers else expected
    return replace(
        found,
        span=expected.span,
        stored_bytes=stored_bytes,
        hidden=shape.hidden,
        intermediate=shape.intermediate * shape.experts_per_token,
        vocabulary=shape.vocabulary,
        max_tokens=_number(shape.text, "max_position_embeddings", "n_positions"),
        has_kv_cache=not any("Bert" in str(name) or "Roberta" in str(name) for name in config.get("architectures") or ()),
    )


def of_config(config: Mapping[str, Any]) -> Checkpoint:
    """The size of a decoder with this config.json, whose weights are not there, or in another format."""
    shape = _shape(config)
    attention = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    experts = shape.experts or 1
    feed_forward = 3 * shape.hidden * shape.intermediate * experts + (shape.hidden * experts if shape.experts else 0)
    linear = shape.layers * (attention + feed_forward)
    of_attention = 4 * shape.hidden + 2 * shape.head_dim * (shape.heads + shape.kv_heads)
    table = shape.vocabulary * shape.hidden
    is_rounded = bool(config.get("quantization_config"))
    return Checkpoint(
        plain=0 if is_rounded else linear,
        rounded=linear if is_rounded else 0,
        group=_group(config),
        table=table,
        head=0 if shape.text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)) else table,
        span=shape.layers * (of_attention + 3 * experts * (shape.hidden + shape.intermediate)),
    )


def _of_tensors(headers: list[dict[str, Any]], group: int) -> Checkpoint:
    counts = Counter[str]()
    for name, dtype, shape, size_bytes in (tensor for header in headers for tensor in _tensors(header)):
        kind = name.rpartition(".")[2]
        numbers = prod(shape)
        if kind in PACKED and dtype == "I32":
            counts["rounded"] += numbers * BITS_OF_A_WORD // 4
        elif kind in BESIDE_PACKED:
            continue
        elif name.endswith(TABLES):
            counts["table"] += numbers
        elif name.endswith(HEADS):
            counts["head"] += numbers
        elif kind == "weight" and len(shape) >= 2 and dtype in ("BF16", "F16", "F32"):
            counts["plain"] += numbers
        elif kind == "weight" and len(shape) >= 2 and dtype == "I8" and _has_scale(name, headers):
            counts["rounded"] += numbers
        else:
            counts["other_bytes"] += size_bytes
    return Checkpoint(
        plain=counts["plain"],
        rounded=counts["rounded"],
        group=group,
        table=counts["table"],
        head=counts["head"],
        other_bytes=counts["other_bytes"],
    )


def _has_scale(name: str, headers: list[dict[str, Any]]) -> bool:
    """Whether an int8 tensor is one of compressed-tensors' W4A8: each byte holds a 4-bit number."""
    scale = f"{name}_scale"
    return any(len(header[scale].get("shape", ())) == 2 and header[scale]["shape"][1] > 1 for header in headers if scale in header)


def _tensors(header: dict[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    for name, tensor in header.items():
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                yield name, str(tensor["dtype"]), tuple(int(size) for size in tensor["shape"]), int(end) - int(begin)


def _header(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError, struct.error), path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length <= LONGEST_HEADER_BYTES:
            return _table(json.loads(file.read(length)))
    return {}


@dataclass(frozen=True, slots=True)
class _Shape:
    text: Mapping[str, Any]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    experts_per_token: int


def _shape(config: Mapping[str, Any]) -> _Shape:
    text = _table(config.get("text_config")) or config
    hidden, heads = _number(text, "hidden_size", "n_embd", "d_model"), _number(text, "num_attention_heads", "n_head")
    experts = _number(text, "num_experts", "num_local_experts", "n_routed_experts")
    return _Shape(
        text=text,
        hidden=hidden,
        intermediate=(_number(text, "moe_intermediate_size") if experts else 0)
        or _number(text, "intermediate_size", "n_inner")
        or 4 * hidden,
        layers=_number(text, "num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=_number(text, "num_key_value_heads") or heads,
        head_dim=_number(text, "head_dim") or hidden // max(1, heads),
        vocabulary=_number(text, "vocab_size"),
        experts=experts,
        experts_per_token=_number(text, "num_experts_per_tok") or 1,
    )


def _group(config: Mapping[str, Any]) -> int:
    quantization = _table(config.get("quantization_config"))
    groups = [quantization, *(_table(_table(group).get("weights")) for group in _table(quantization.get("config_groups")).values())]
    return next((size for group in groups if (size := _number(group, "group_size"))), 128)


def _number(config: Mapping[str, Any], *names: str) -> int:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json_of(path: Path) -> Any:
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_bytes())
    return {}
