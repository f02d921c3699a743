"""The arithmetic of memory, in words. Pure."""

from collections.abc import Iterable, Mapping

from axiond.resources.estimate import Prediction, gib, together_bytes

Needs = Mapping[str, tuple[int, Prediction]]  # by model: how many engines, and what each takes
REMEDY = 'Choose a smaller kv_cache, load = "lazy" for models that need not be up all the time, or a larger server.memory_budget.'


def engines_of(needs: Needs) -> tuple[Prediction, ...]:
    return tuple(prediction for count, prediction in needs.values() for _ in range(count))


def needed_bytes(needs: Needs) -> int:
    return together_bytes(engines_of(needs))


def lack_of_memory(lacking_bytes: int, budget_bytes: int) -> str:
    return f"does not fit: {lacking_bytes / 2**30:.1f} GiB more than the memory budget of {budget_bytes / 2**30:.1f} GiB"


def refusal(needs: Needs, budget_bytes: int) -> str | None:
    """Why engines that shall all run at once cannot, with the sum and what to do about it; None if they can."""
    total = needed_bytes(needs)
    if total <= budget_bytes:
        return None
    return "\n".join((lack_of_memory(total - budget_bytes, budget_bytes), *_terms(needs, total), REMEDY))


def node_refusal(needs: Needs, node_bytes: int) -> str | None:
    """Why an engine finds no NUMA node that is large enough: vLLM refuses a KV cache that one node's memory cannot hold."""
    for name, (_, prediction) in needs.items():
        if (needed := prediction.weights_bytes + prediction.kv_cache_bytes) > node_bytes:
            return f"{name} needs {gib(needed)} GiB on one NUMA node for weights and KV cache, and the largest has {gib(node_bytes)} GiB"
    return None


def _terms(needs: Needs, total_bytes: int) -> Iterable[str]:
    for name, (count, prediction) in sorted(needs.items(), key=lambda item: -item[1][0] * item[1][1].steady_bytes):
        times = f"{count} x " if count > 1 else ""
        yield f"  {name}: {times}{prediction.arithmetic()}"
    held = sum(prediction.steady_bytes for prediction in engines_of(needs))
    if total_bytes > held:
        yield f"  while one of them loads: {gib(total_bytes - held)} GiB more"
    yield f"  together: {gib(total_bytes)} GiB"
