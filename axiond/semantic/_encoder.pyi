"""What native/encoder/bind.cc exports."""

from array import array
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

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
    def encode(self, ids: array[int], lengths: array[int], out: NDArray[np.float32]) -> None:
        """
        Embed texts, without the interpreter's lock.

        Args:
            ids: of type "i", the tokens of all texts one after the other.
            lengths: of type "i", how many of them belong to each text.
            out: shape (texts, hidden), contiguous.

        Raises:
            ValueError: an id or a length is beyond the model's, or sizes do not fit each other.
        """
    @property
    def bytes(self) -> int: ...

def force_isa(name: str) -> None: ...
def kernels() -> dict[str, str]: ...
