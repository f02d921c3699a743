"""What an engine is expected to take of the machine's memory. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prediction:
    """
    The memory of one engine. *load_bytes* is what it takes while it loads, beside all else.

    *measured_steady_bytes* and *measured_peak_bytes* replace the sum once an engine of the same digest was seen; 0 until then.
    *load_s* is how long its last start took.
    """

    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    activations_bytes: int = 0
    fixed_bytes: int = 0
    load_bytes: int = 0
    measured_steady_bytes: int = 0
    measured_peak_bytes: int = 0
    load_s: float | None = None

    @property
    def steady_bytes(self) -> int:
        """What it holds once it is ready."""
        expected = self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.fixed_bytes
        return self.measured_steady_bytes or expected

    @property
    def peak_bytes(self) -> int:
        """The most it takes at any time, which is while it loads."""
        return max(self.steady_bytes, self.measured_peak_bytes or self.steady_bytes + self.load_bytes)


def together_bytes(predictions: Sequence[Prediction]) -> int:
    """What engines need that are started one after another, in whichever order: what all hold, and the largest load peak on top."""
    return sum(p.steady_bytes for p in predictions) + max((p.peak_bytes - p.steady_bytes for p in predictions), default=0)
