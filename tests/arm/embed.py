"""Embed two sentences on every level that this CPU has; print the kernels used and the vectors' digest."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from axiond.semantic import _encoder
from axiond.semantic.encoder import Encoder

LEVELS = ("portable", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16", "avx2", "avx512vnni", "avx512bf16")
TEXTS = ("How do I sort a list in Python?", "¿Qué dosis de ibuprofeno puede tomar un niño?")


def main() -> None:
    for level in LEVELS:
        try:
            _encoder.force_isa(level)
        except ValueError:
            continue  # this CPU lacks it
        vectors, tokens = Encoder.load(Path(sys.argv[1])).encode(TEXTS)
        kernels = _encoder.kernels()
        print(f"{kernels['linear']}, {kernels['others']}:", f"tokens {tokens}, cosine {np.dot(*vectors):.6f}, digest",
              hashlib.sha256(vectors.tobytes()).hexdigest()[:16])  # fmt: skip


if __name__ == "__main__":
    main()
