"""Sentence embeddings in this process: a BERT forward without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axiond.errors import SourceError
from axiond.semantic.folder import BertFolder, read_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

FEWEST_CHARACTERS_PER_TOKEN, MOST_CHARACTERS_PER_TOKEN = 8, 64


class Encoder:
    """Turns texts into unit vectors. For one thread at a time; it holds the interpreter's lock only while it tokenizes."""

    def __init__(self, folder: BertFolder, tokenizer: "Tokenizer", weights: "dict[str, NDArray[np.float32]]") -> None:
        self.dimensions, self.most_tokens = folder.hidden, folder.most_tokens
        self._folder, self._tokenizer, self._weights = folder, tokenizer, weights

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """
        Load a sentence-transformers folder of the BERT family. Blocks.

        Raises:
            SourceError: it is another kind of model, or not whole.
        """
        described = read_folder(folder)
        return cls(described, _tokenizer(folder, described), _weights(described))

    def encode(self, texts: Sequence[str], most_tokens: int = 64) -> "tuple[NDArray[np.float32], tuple[int, ...]]":
        """
        Embed texts. Blocks.

        Args:
            texts: of any length; only their beginning is read.
            most_tokens: how many tokens of each text are read, special ones included; never more than the model takes.

        Returns:
            float32 vectors of length 1, shape (texts, dimensions), and how many tokens of each text were read.
        """
        import numpy as np

        tokens = [self._read(text, min(most_tokens, self.most_tokens)) for text in texts]
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for i, ids in enumerate(tokens):
            vectors[i] = _forward(np, self._folder, self._weights, ids)
        return vectors, tuple(len(ids) for ids in tokens)

    def _read(self, text: str, most_tokens: int) -> list[int]:
        """Token ids of a text's beginning; of a long text only as many characters as it takes are looked at."""
        if (self._tokenizer.truncation or {}).get("max_length") != most_tokens:
            self._tokenizer.enable_truncation(most_tokens)
        for per_token in (FEWEST_CHARACTERS_PER_TOKEN, MOST_CHARACTERS_PER_TOKEN):
            characters = most_tokens * per_token
            beginning = self._folder.prompt + text[:characters]
            encoding = self._tokenizer.encode(beginning.lower() if self._folder.lowercase else beginning)
            if len(text) <= characters or encoding.overflowing:
                break
        return list(encoding.ids)


def _tokenizer(folder: Path, described: BertFolder) -> "Tokenizer":
    from tokenizers import Tokenizer

    path = described.transformer / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing narrower
        remedy = "write it with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        raise SourceError(str(folder), f"{path.name} cannot be read: {exc}; {remedy}") from exc
    tokenizer.no_padding()
    return tokenizer


def _weights(folder: BertFolder) -> "dict[str, NDArray[np.float32]]":
    import numpy as np

    data = np.memmap(folder.weights, np.uint8, "r")

    def read(name: str) -> "NDArray[np.float32]":
        tensor = folder.tensors[name]
        size = 4 if tensor.type == "F32" else 2
        raw = data[tensor.begin : tensor.begin + size * int(np.prod(tensor.shape))]
        if tensor.type == "BF16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
        return raw.view(np.float32 if size == 4 else np.float16).astype(np.float32).reshape(tensor.shape)

    return {name: read(name) for name in folder.tensors}


def _forward(np: Any, folder: BertFolder, weights: "dict[str, NDArray[np.float32]]", ids: list[int]) -> Any:
    from math import erf

    def norm(x: Any, name: str) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + folder.norm_epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def heads(x: Any) -> Any:
        return x.reshape(len(ids), folder.heads, -1).transpose(1, 0, 2)

    positions = weights["embeddings.position_embeddings.weight"][folder.first_position :][: len(ids)]
    x = weights["embeddings.word_embeddings.weight"][ids] + positions + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(folder.layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (heads(linear(x, f"{layer}.attention.self.{name}")) for name in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        wide = linear(x, f"{layer}.intermediate.dense")
        wide = wide * 0.5 * (1 + np.vectorize(erf)(wide / np.sqrt(2)).astype(np.float32))
        x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    pooled = x.mean(0) if folder.pooling == "mean" else x[0]
    return pooled / np.linalg.norm(pooled)
