"""Which engines share the machine's cores. Pure."""

from collections.abc import Callable, Iterable, Mapping

from axiond.engine.argv import worker_count
from axiond.kernels.settings import Settings
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.plan import wanted_keys, without_room
from axiond.reconcile.state import EngineKey, EngineState, EngineView, Observed, SourceState, Target
from axiond.resources.cores import Claim, Slot

GONE = frozenset({EngineState.FAILED, EngineState.STOPPED})
RUNNING = frozenset({EngineState.STARTING, EngineState.READY, EngineState.DRAINING})


def can_follow(spec: ModelSpec) -> bool:
    """Whether its EngineCore looks where it shall compute: only with axiond's kernels, and as its own worker."""
    return worker_count(spec) == 1 and not Settings(**spec.kernels.model_dump()).is_off


def slot_of(key: EngineKey) -> Slot:
    return Slot(key.model, key.replica)


def core_claims(
    engines: Mapping[EngineKey, EngineView], starting: Iterable[EngineKey], spec_of: Callable[[EngineKey], ModelSpec | None]
) -> tuple[Claim, ...]:
    """
    What those that run, and those about to start, ask for.

    Where an old and a new engine share a slot, the new one's manifest says it. An engine that has crashed keeps its place,
    and one of which no manifest says anything any more its cores.
    """
    claims: dict[Slot, Claim] = {}
    for key, view in engines.items():
        if view.state not in GONE:
            spec, slot = spec_of(key), slot_of(key)
            is_fixed = spec is None or (view.state in RUNNING and not can_follow(spec))
            claims[slot] = Claim.of(slot, spec, is_fixed=is_fixed) if spec else Claim(slot, is_fixed=True)
    for key in starting:
        if spec := spec_of(key):
            slot = slot_of(key)
            claims[slot] = Claim.of(slot, spec, is_fixed=slot in claims and claims[slot].is_fixed)
    return tuple(claims[slot] for slot in sorted(claims))


def about_to_start(desired: Target, observed: Observed, now: float) -> tuple[EngineKey, ...]:
    """Engines that are wanted, and whose model is there; without those that memory has no place for."""
    homeless = without_room(desired, observed, now)
    return tuple(key for key in wanted_keys(desired, observed, now) if key not in homeless and _has_source(key, desired, observed))


def _has_source(key: EngineKey, desired: Target, observed: Observed) -> bool:
    source = observed.sources.get(desired.models[key.model].source)
    return source is not None and source.state is SourceState.READY
