"""
What an engine is expected to take of the machine's memory. Pure.

The constants are measured: `bench/memory.py` shows them beside real engines, in `bench/results/memory.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from axiond.engine.argv import worker_count
from axiond.kernels.settings import Settings
from axiond.manifest.spec import ModelSpec, Server
from axiond.resources.checkpoint import Checkpoint
from axiond.resources.measured import NEVER, Measured

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Processes:
    """What an engine's processes take before there is a model: the API server, and each worker; the first is EngineCore too."""

    api_server_bytes: int
    worker_bytes: int
    apart_bytes: int  # what it costs that EngineCore and worker are two processes


EXECUTED = Processes(570 * MIB, 600 * MIB, 770 * MIB)
FORKED = Processes(330 * MIB, 430 * MIB, 0)  # the rest is shared with the fork server
PACKING_BYTES = 100 * MIB  # what packing for axiond's kernels leaves behind
STOCK_INT4_BYTES = 1.0  # of one 4-bit weight as vLLM's own kernels keep it
COMPILING_BYTES = 1200 * MIB  # Inductor's processes, and what it keeps
DEFAULT_BATCHED_TOKENS, DEFAULT_SEQUENCES = 2048, 128  # of vLLM's API server on a CPU
LORA_RANK = 16  # vLLM's max_lora_rank, unless engine_args say otherwise
FLOAT_BYTES = 4  # products and logits are there in float32 and in the model's type
CEILING_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Prediction:
    """
    The memory of one engine. *load_bytes* is what it takes while it loads, beside its weights and processes.

    *measured* is what engines of the same digest took, and counts more than the sum of the parts.
    """

    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    activations_bytes: int = 0
    fixed_bytes: int = 0
    load_bytes: int = 0
    measured: Measured = NEVER

    @property
    def expected_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.fixed_bytes

    @property
    def steady_bytes(self) -> int:
        """What it holds once it has served all kinds of requests."""
        return max(self._once_ready_bytes, self.measured.most_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most it takes at any time, loading included."""
        return max(self.steady_bytes, self._loading_bytes)

    @property
    def _once_ready_bytes(self) -> int:
        if not self.measured.ready_bytes:
            return self.expected_bytes
        # A KV cache that was not used yet need not have its pages.
        return self.activations_bytes + max(self.measured.ready_bytes, self.kv_cache_bytes + self.fixed_bytes // 2)

    @property
    def _loading_bytes(self) -> int:
        return self.measured.load_peak_bytes or self.weights_bytes + self.fixed_bytes + self.load_bytes

    @property
    def load_s(self) -> float | None:
        """Seconds that its starts took lately."""
        return self.measured.load_s

    def ceiling_bytes(self, declared: int | None) -> int:
        """What it may grow to before it is replaced. What it grew to before does not count: a leak is no excuse for itself."""
        return declared or int(CEILING_FACTOR * max(self._once_ready_bytes, self._loading_bytes))

    def arithmetic(self) -> str:
        """The sum in words, in GiB."""
        parts = (
            ("weights", self.weights_bytes),
            ("KV cache", self.kv_cache_bytes),
            ("activations", self.activations_bytes),
            ("processes", self.fixed_bytes),
        )
        terms = " + ".join(f"{name} {gib(size)}" for name, size in parts if size)
        if self.measured.ready_bytes:
            return f"{gib(self.steady_bytes)} GiB as measured, where {gib(self.expected_bytes)} were expected: {terms}"
        return f"{gib(self.steady_bytes)} GiB: {terms}"


def gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}" if size_bytes >= GIB / 10 else f"{size_bytes / GIB:.2f}"


def together_bytes(predictions: Sequence[Prediction]) -> int:
    """What engines need that are started one after another, in whichever order: what all hold, and the largest load peak on top."""
    return sum(p.steady_bytes for p in predictions) + max((p.peak_bytes - p.steady_bytes for p in predictions), default=0)


def processes_of(server: Server) -> Processes:
    return FORKED if server.fork_server else EXECUTED


def predict(spec: ModelSpec, checkpoint: Checkpoint | None, measured: Measured = NEVER, processes: Processes = FORKED) -> Prediction:
    """
    Expect what one engine of *spec* takes.

    Args:
        checkpoint: None while nobody has seen it: then its weights count nothing.
        measured: of the same digest, if there is any.
        processes: how its processes come to be.
    """
    found, workers = checkpoint or Checkpoint(), worker_count(spec)
    return Prediction(
        weights_bytes=_weights_bytes(spec, found) + _adapters_bytes(spec, found),
        kv_cache_bytes=int(spec.kv_cache) * workers if found.has_kv_cache else 0,
        activations_bytes=_activations_bytes(spec, found),
        fixed_bytes=_fixed_bytes(spec, processes, workers),
        load_bytes=found.head or found.table,  # rounding it
        measured=measured,
    )


def _fixed_bytes(spec: ModelSpec, processes: Processes, workers: int) -> int:
    is_apart = workers > 1 or _is_stock(spec)
    base_bytes = processes.api_server_bytes + processes.worker_bytes * workers
    apart_bytes, compiling_bytes = processes.apart_bytes if is_apart else 0, 0 if spec.enforce_eager else COMPILING_BYTES
    return base_bytes + apart_bytes + compiling_bytes + (0 if _is_stock(spec) else PACKING_BYTES)


def _weights_bytes(spec: ModelSpec, found: Checkpoint) -> int:
    """As axiond's kernels keep them, or vLLM's."""
    if not (found.plain or found.rounded or found.table):
        return found.stored_bytes
    width = _width(spec)
    tables = (found.table + found.head) * width
    rounded = STOCK_INT4_BYTES if spec.kernels.w4a8 == "off" else _q4_bytes(found.group)
    leftover = 0 if _is_stock(spec) else found.head or found.table  # what the allocator keeps of packing it
    return int(found.plain * width + found.rounded * rounded) + tables + _head_copy_bytes(spec, found) + leftover + found.other_bytes


def _q4_bytes(group: int) -> float:
    """Bytes of one packed 4-bit weight: 16 columns share a header of 64 bytes for each group, as native/linear/linear.h has it."""
    kept = next((size for size in (128, 64, 32) if group % size == 0), 32)
    return 0.5 + 4 / kept


def _head_copy_bytes(spec: ModelSpec, found: Checkpoint) -> int:
    """The output layer packed for products, which is kept beside the table."""
    numbers = found.head or found.table
    if not found.has_kv_cache:
        return 0
    if spec.kernels.lm_head == "none" or spec.lora:
        return numbers * _width(spec)
    return numbers if spec.kernels.lm_head == "int8" else int(numbers * _q4_bytes(32))


def _adapters_bytes(spec: ModelSpec, found: Checkpoint) -> int:
    """Room for one adapter beside all layers, and a copy of each."""
    rank = _argument(spec, "max-lora-rank", LORA_RANK)
    return (len(spec.lora) + _argument(spec, "max-loras", 1)) * found.span * rank * _width(spec) if spec.lora else 0


def _activations_bytes(spec: ModelSpec, found: Checkpoint) -> int:
    """The larger of one step's widest layer and of its logits."""
    width, tokens = _width(spec), _batched_tokens(spec, found)
    feed_forward = tokens * 2 * found.intermediate * (width + FLOAT_BYTES)
    sequences = min(spec.max_num_seqs or DEFAULT_SEQUENCES, tokens)
    logits = sequences * found.vocabulary * (width + FLOAT_BYTES)
    return max(feed_forward, logits if found.has_kv_cache else 0)


def _batched_tokens(spec: ModelSpec, found: Checkpoint) -> int:
    if spec.chunked_prefill.max_num_batched_tokens:
        return spec.chunked_prefill.max_num_batched_tokens
    longest = spec.max_model_len or found.max_tokens
    return DEFAULT_BATCHED_TOKENS * worker_count(spec) if spec.chunked_prefill.enabled else max(longest, DEFAULT_BATCHED_TOKENS)


def _is_stock(spec: ModelSpec) -> bool:
    return Settings(**spec.kernels.model_dump()).is_off


def _argument(spec: ModelSpec, option: str, default: int) -> int:
    values = {name.lstrip("-").replace("_", "-"): value for name, value in spec.engine_args.items()}
    text = str(values.get(option, default))
    return int(text) if text.isdecimal() and len(text) < 6 else default


def _width(spec: ModelSpec) -> int:
    return 4 if spec.dtype == "float32" else 2
