"""
Sentence embeddings in this process: a BERT forward in native code, without torch.

Its linear layers multiply in int8 on the kernels of native/linear (VNNI on x86-64; SDOT and SMMLA on aarch64).
"""

import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from axiond.errors import SourceError
from axiond.semantic.folder import BertFolder, Tensor, read_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from axiond.semantic import _encoder

# What libraries this needs is imported by load(), so that a daemon without an encoder does without them.

TEXTS_IN_A_TURN = 8
CHARACTERS_PER_TOKEN = (6, 16, 64)  # of a beginning that mostly, and then nearly always, holds as many tokens as are read


class Encoder:
    """Turns texts into unit vectors. Threads take turns, a few texts at a time; others run on, except while it tokenizes."""

    def __init__(self, folder: BertFolder, tokenizer: "Tokenizer", model: "_encoder.Encoder") -> None:
        self.dimensions, self.most_tokens, self.bytes = folder.hidden, folder.most_tokens, model.bytes
        self._folder, self._tokenizer, self._model = folder, tokenizer, model
        self._turn = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """
        Load a sentence-transformers folder of the BERT family. Blocks.

        Raises:
            SourceError: it is another kind of model, or not whole.
        """
        described = read_folder(folder)
        return cls(described, _tokenizer(folder, described), _model(folder, described))

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

        most_tokens, lengths = min(most_tokens, self.most_tokens), array("i")
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for at in range(0, len(texts), TEXTS_IN_A_TURN):
            with self._turn:
                lengths += self._encode(texts[at : at + TEXTS_IN_A_TURN], most_tokens, vectors[at : at + TEXTS_IN_A_TURN])
            time.sleep(0)  # or else this thread would take the next turn too
        return vectors, tuple(lengths)

    def _encode(self, texts: Sequence[str], most_tokens: int, vectors: "NDArray[np.float32]") -> "array[int]":
        with _panics_are_errors():
            tokens = [self._read(text, most_tokens) for text in texts]
        ids, lengths = array("i"), array("i", map(len, tokens))
        for each in tokens:
            ids.extend(each)
        self._model.encode(ids, lengths, vectors)
        return lengths

    def _read(self, text: str, most_tokens: int) -> list[int]:
        """Token ids of a text's beginning; of a long text only as many characters as it takes are looked at."""
        if (self._tokenizer.truncation or {}).get("max_length") != most_tokens:
            self._tokenizer.enable_truncation(most_tokens)
        for per_token in CHARACTERS_PER_TOKEN:
            characters = most_tokens * per_token
            beginning = self._folder.prompt + text[:characters]
            encoding = self._tokenizer.encode(beginning.lower() if self._folder.lowercase else beginning)
            if len(text) <= characters or encoding.overflowing:
                break
        return list(encoding.ids)


@contextmanager
def _panics_are_errors() -> Iterator[None]:
    """What tokenizers calls a panic is no Exception: nobody who survives errors would survive it."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:
        raise ValueError(f"the tokenizer fails: {exc}") from exc


def _tokenizer(folder: Path, described: BertFolder) -> "Tokenizer":
    from tokenizers import Tokenizer

    path = described.transformer / "tokenizer.json"
    try:
        with _panics_are_errors():
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.encode("a")
    except Exception as exc:  # the library raises nothing narrower
        remedy = "write it with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        raise SourceError(str(folder), f"{path.name} cannot be read: {exc}; {remedy}") from exc
    if tokenizer.get_vocab_size() > described.vocabulary:
        raise SourceError(str(folder), f"{path.name} has more tokens than config.json says; fetch the folder again")
    tokenizer.no_padding()
    return tokenizer


def _model(folder: Path, described: BertFolder) -> "_encoder.Encoder":
    from axiond.semantic import _encoder

    with described.weights.open("rb") as file:

        def read(name: str) -> tuple[bytes, str]:
            tensor: Tensor = described.tensors[name]
            file.seek(tensor.begin)
            return file.read(tensor.bytes), tensor.type

        try:
            return _encoder.Encoder(
                vocabulary=described.vocabulary,
                positions=described.positions,
                first_position=described.first_position,
                hidden=described.hidden,
                intermediate=described.intermediate,
                layers=described.layers,
                heads=described.heads,
                norm_epsilon=described.norm_epsilon,
                pools_mean=described.pooling == "mean",
                read=read,
            )
        except ValueError as exc:
            raise SourceError(str(folder), f"{described.weights.name} changed while it was read ({exc}); try again") from exc
