"""What native/encoder/bind.cc exports."""

from collections.abc import Callable

from typing_extensions import Buffer

class Encoder:
    def __init__(
        self,
        *,
        vocabulary: int,
        positions: int,
        first_position: int,
        hidden: int,
        intermediate: int,
        layers: int,
        heads: int,
        norm_epsilon: float,
        pools_mean: bool,
        read: Callable[[str], tuple[bytes, str]],
    ) -> None:
        """Load a model; *read* gives the bytes of a tensor, and F32, F16 or BF16."""
    def encode(self, ids: Buffer, lengths: Buffer, out: Buffer) -> None:
        """
        Embed texts, without the interpreter's lock.

        Args:
            ids: int32, the tokens of all texts one after the other.
            lengths: int32, how many of them belong to each text.
            out: float32, shape (texts, hidden).

        Raises:
            ValueError: an id or a length is beyond the model's, or sizes do not fit each other.
        """
    @property
    def bytes(self) -> int: ...

def force_isa(name: str) -> None: ...
def kernels() -> dict[str, str]: ...
