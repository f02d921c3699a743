"""
Sentence embeddings one text at a time on one core: axiond's encoder, ONNX Runtime, and sentence-transformers on torch, in one run.

Each text visits all of them before the next one does, so that a neighbour on the machine disturbs none more than the others.
`taskset -c 0 python bench/encoder.py FOLDER --write` makes `bench/results/encoder.md`; see encoders.py for what has to be installed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from axiond.semantic import _encoder
from axiond.semantic.encoder import Encoder
from bench.encoders import MAKERS, Encodes
from bench.machine import describe

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench/results/encoder.md"
PROMPTS = ROOT / "tests/data/routing_prompts.jsonl"
PACKAGES = ("axiond", "torch", "sentence-transformers", "onnxruntime", "tokenizers", "numpy")
TRUTH = "sentence-transformers, torch f32"
LEVELS = ("avx512vnni", "avx2", "portable")
LENGTHS = (8, 16, 32, 64, 128, 256)
RSS = """
import sys, psutil; from pathlib import Path; from axiond.semantic.encoder import Encoder; import numpy, tokenizers
rss = lambda: psutil.Process().memory_info().rss
before = rss(); encoder = Encoder.load(Path(sys.argv[1])); encoder.encode(["word " * 300], 256); print((rss() - before) / 1e6)
"""


@dataclass
class Measured:
    encoder: Encodes
    load_s: float
    times_s: list[float] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def visit(self, text: str) -> None:
        began = time.perf_counter()
        vectors, tokens = self.encoder.encode([text], 64)
        self.times_s.append(time.perf_counter() - began)
        self.vectors.append(vectors[0])
        self.tokens.append(tokens[0])

    def forget(self) -> None:
        self.times_s, self.vectors, self.tokens = [], [], []


def loaded(make: Callable[[Path], Encodes], folder: Path) -> Measured:
    began = time.perf_counter()
    encoder = make(folder)
    return Measured(encoder, time.perf_counter() - began)


def prompts() -> list[str]:
    return [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()]


def long_texts(texts: list[str], count: int) -> list[str]:
    """Of at least 64 tokens: several prompts behind each other."""
    return [" ".join(texts[(7 * i + j) % len(texts)] for j in range(8)) for i in range(count)]


def compare(folder: Path, count: int) -> Iterator[str]:
    makers: dict[str, Callable[[Path], Encodes]] = {**MAKERS, "axiond": Encoder.load}
    measured = {name: loaded(make, folder) for name, make in makers.items()}
    short = prompts()[:count]
    for title, texts in (("64 tokens", long_texts(short, min(count, 150))), ("the prompts of tests/data", short)):
        for each in measured.values():
            each.forget()
        for text in texts:
            for each in measured.values():
                each.visit(text)
        truth = np.array(measured[TRUTH].vectors)
        yield f"\n## {title}: {len(texts)} texts of {np.mean(measured['axiond'].tokens):.1f} tokens\n"
        yield "| | load, s | least, ms | p50, ms | p99, ms | texts/s | cosine to torch: mean | least | same nearest text |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for name, each in measured.items():
            vectors = np.array(each.vectors)
            cosines = (vectors * truth).sum(1)
            same = np.mean(nearest(vectors) == nearest(truth))
            times = " | ".join(f"{time_s * 1e3:.2f}" for time_s in (min(each.times_s), *np.quantile(each.times_s, [0.5, 0.99])))
            likeness = f"{cosines.mean():.4f} | {cosines.min():.4f} | {same:.1%}"
            yield f"| {name} | {each.load_s:.2f} | {times} | {1 / np.mean(each.times_s):.0f} | {likeness} |"


def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -1)
    return np.asarray(scores.argmax(1))


def by_length(folder: Path) -> Iterator[str]:
    yield "\n## axiond by level and length: least milliseconds of a whole call\n"
    yield "| level | linear layers by | " + " | ".join(f"{length} tokens" for length in LENGTHS) + " |"
    yield "|---|---|" + "---|" * len(LENGTHS)
    text = " ".join(prompts())
    for level in LEVELS:
        try:
            _encoder.force_isa(level)
        except ValueError as exc:
            yield f"| {level} | {exc} |" + " |" * len(LENGTHS)
            continue
        encoder = Encoder.load(folder)
        rounds = 3 if level == "portable" else 60
        cells = [f"{min(timed(encoder, text, length) for _ in range(rounds)) * 1e3:.2f}" for length in LENGTHS]
        yield f"| {level} | `{_encoder.kernels()['linear']}` | " + " | ".join(cells) + " |"
    _encoder.force_isa("")


def timed(encoder: Encoder, text: str, tokens: int) -> float:
    began = time.perf_counter()
    _, read = encoder.encode([text], tokens)
    took_s = time.perf_counter() - began
    assert read == (tokens,)
    return took_s


def report(folder: Path, count: int) -> Iterator[str]:
    yield "# Sentence embeddings on one core\n"
    machine = describe()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield f"{machine['date']}, {machine['cpu']} ({machine['features']}), one thread; {packages}."
    yield "all-MiniLM-L6-v2, one text a call, tokenizing included; each text visits all encoders before the next one does."
    memory_mb = float(subprocess.check_output([sys.executable, "-c", RSS, str(folder)]))
    yield f"axiond's encoder takes {memory_mb:.0f} MB of memory, tokenizer and all."
    yield from compare(folder, count)
    yield from by_length(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of sentence-transformers, like all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    lines = []
    for line in report(arguments.folder, arguments.texts):
        print(line, flush=True)
        lines.append(line)
    if arguments.write:
        RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
