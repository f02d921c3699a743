"""Which cores each engine runs on: one plan for all of them. Pure."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

import pydantic

from axiond.manifest.spec import ModelSpec
from axiond.resources.machine import Core, Topology, format_cpu_list, parse_cpu_list
from axiond.resources.place import allot, spread, take

RESERVING_CORES = 8
# An engine with fewer cores, and no other logical CPUs, computes on all: on two idle cores that doubles prefill and brings a
# third more tokens/s at 16 streams.
SPARING_CORES = 4


class Slot(NamedTuple):
    """One replica of a model. The old and the new engine of a change share it."""

    model: str
    replica: int = 0

    def __str__(self) -> str:
        return f"{self.model}#{self.replica}" if self.replica else self.model


@dataclass(frozen=True, slots=True)
class Claim:
    """
    What one slot asks for: the logical CPUs that its manifest names, or a share of those that nobody names.

    *is_fixed*: it keeps the cores it has, whatever it asks for.
    """

    slot: Slot
    share: float = 1.0
    named: frozenset[int] | None = None
    is_fixed: bool = False

    @classmethod
    def of(cls, slot: Slot, spec: ModelSpec, *, is_fixed: bool = False) -> "Claim":
        """A model's share is for all its replicas; its lists are used again when there are more replicas."""
        if spec.cores is None:
            return cls(slot, spec.core_share / spec.replicas, is_fixed=is_fixed)
        lists = (spec.cores,) if isinstance(spec.cores, str) else spec.cores
        return cls(slot, named=parse_cpu_list(lists[slot.replica % len(lists)]), is_fixed=is_fixed)


@dataclass(frozen=True, slots=True)
class CorePlan:
    """
    The logical CPUs of one engine.

    Args:
        compute: one for each thread that computes, each on a physical core of its own.
        others: more, for its API server and scheduler.
        nodes: memory nodes to prefer; empty: no matter which.
        missing: CPUs that its manifest names and that may not be used.
        notes: what the operator should know.
    """

    compute: tuple[int, ...]
    others: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def cores(self) -> frozenset[int]:
        return frozenset((*self.compute, *self.others))


ANYWHERE = CorePlan(())
CORE_PLAN = pydantic.TypeAdapter(CorePlan)


def reserved_cores(topology: Topology, claims: Iterable[Claim], reserved: int | None) -> tuple[Core, ...]:
    """
    The cores that are left to the daemon: little ones first, then the lowest, where interrupts arrive too.

    None that a manifest names, and never all. *reserved* None is one from eight upward.
    """
    usable = topology.usable
    if reserved is None:
        reserved = int(min(len(usable), topology.quota_cpus or math.inf) >= RESERVING_CORES)
    named = frozenset(cpu for claim in claims for cpu in claim.named or ())
    free = sorted((core for core in usable if named.isdisjoint(core.cpus)), key=lambda core: (core.is_big, core.cpus))
    return tuple(free[: min(reserved, len(usable) - 1)])


def plan_cores(
    topology: Topology, claims: Iterable[Claim], reserved: int | None, before: Mapping[Slot, CorePlan] | None = None
) -> dict[Slot, CorePlan]:
    """
    Give every slot its cores.

    Who names cores gets these. The others share the rest by weight, in whole physical cores, each within one memory node
    and one cluster where it fits. What was planned *before* stays where it is, unless moving brings an engine onto fewer
    nodes. Only big cores compute, and no more of them than the quota grants.
    """
    before = before or {}
    claims = sorted(claims, key=lambda claim: claim.slot)
    set_aside = reserved_cores(topology, claims, reserved)
    plans: dict[Slot, CorePlan] = {}
    for claim in claims:
        if claim.is_fixed and claim.slot in before and before[claim.slot].cores <= topology.allowed:
            plans[claim.slot] = replace(before[claim.slot], notes=())
        elif claim.named is not None:
            plans[claim.slot] = _plan_named(topology, claim.named)
    sharing = [claim for claim in claims if claim.slot not in plans]
    if sharing:
        free = _free(topology, set_aside, plans.values(), before)
        helpers = _helpers(topology, set_aside)
        for slot, cores in _share_out(free, sharing, before).items():
            plans[slot] = _plan(topology, cores, helpers)
    asked = {claim.slot: claim for claim in claims}
    return {slot: replace(plans[slot], notes=tuple(_notes(slot, plans, topology, asked))) for slot in asked}


def _plan_named(topology: Topology, named: frozenset[int]) -> CorePlan:
    found = [replace(core, cpus=cpus) for core in topology.cores if (cpus := tuple(cpu for cpu in core.cpus if cpu in named))]
    return replace(_plan(topology, found), missing=tuple(sorted(named - topology.allowed)))


def _plan(topology: Topology, cores: Sequence[Core], helpers: Sequence[Core] = ()) -> CorePlan:
    """Plan for an engine alone on *cores*, whose siblings, or else *helpers*, are for what does not compute."""
    computing = sorted([core for core in cores if core.is_big] or cores, key=attrgetter("cpus"))
    compute = [core.cpus[0] for core in computing]
    others = [cpu for core in cores for cpu in core.cpus if cpu not in compute] or [cpu for core in helpers for cpu in core.cpus]
    if not others and len(compute) >= SPARING_CORES:
        others = [compute.pop()]
    nodes = {core.node for core in computing} & topology.nodes.keys() if len(topology.nodes) > 1 else ()
    return CorePlan(tuple(compute), tuple(sorted(others)), tuple(sorted(nodes)))


def _free(
    topology: Topology, set_aside: Collection[Core], plans: Collection[CorePlan], before: Mapping[Slot, CorePlan]
) -> tuple[Core, ...]:
    """The cores to share out; those that others name too if they name all."""
    big = [core for core in topology.usable if core.is_big]
    taken = frozenset(cpu for plan in plans for cpu in plan.cores)
    free = [core for core in big if core not in set_aside] or big
    free = [core for core in free if taken.isdisjoint(core.cpus)] or free
    if topology.quota_cpus is None:
        return tuple(free)
    spent = sum(core.is_big for core in set_aside) + sum(len(plan.compute) for plan in plans)
    held = frozenset(cpu for plan in before.values() for cpu in plan.compute)
    return take(free, max(1, int(topology.quota_cpus) - spent), [core for core in free if not held.isdisjoint(core.cpus)])


def _helpers(topology: Topology, set_aside: Collection[Core]) -> Sequence[Core]:
    little = [core for core in topology.usable if not core.is_big]
    return [core for core in little if core not in set_aside] or little


def _share_out(free: Sequence[Core], claims: Sequence[Claim], before: Mapping[Slot, CorePlan]) -> Mapping[Slot, Sequence[Core]]:
    had = {slot: plan.cores for slot, plan in before.items()}
    held = {claim.slot: [core for core in free if not had.get(claim.slot, frozenset()).isdisjoint(core.cpus)] for claim in claims}
    share = spread if len(claims) > len(free) else allot
    return share(free, {claim.slot: claim.share for claim in claims}, held)


def _notes(slot: Slot, plans: Mapping[Slot, CorePlan], topology: Topology, claims: Mapping[Slot, Claim]) -> Iterator[str]:
    physical = {cpu: core.cpus for core in topology.cores for cpu in core.cpus}
    mine = _physical(plans[slot], physical)
    company: dict[tuple[str, str], list[str]] = {}
    for other in sorted(plans):
        if other != slot and (both := mine & _physical(plans[other], physical)):
            cpus = format_cpu_list(cpu for cpus in both for cpu in cpus)
            company.setdefault((cpus, _why_both(claims[slot], claims[other])), []).append(str(other))
    for (cpus, why), others in company.items():
        yield f"shares CPU {cpus} with {', '.join(others)}: {why}"


def _why_both(one: Claim, other: Claim) -> str:
    if one.named is not None and other.named is not None:
        return "both name it"
    if fixed := [str(claim.slot) for claim in (one, other) if claim.is_fixed]:
        return f"{' and '.join(fixed)} cannot move before the next start"
    return "there are not enough cores"


def _physical(plan: CorePlan, physical: Mapping[int, tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {physical.get(cpu, (cpu,)) for cpu in plan.compute}


def differences(plan: CorePlan, cores: frozenset[int], bound: frozenset[int]) -> Iterator[str]:
    """Say where the CPUs that an engine was found on, and those its threads are *bound* to, are others than planned."""
    for verb, found, planned in (("runs", cores, plan.cores), ("computes", bound, frozenset(plan.compute))):
        if planned and not found <= planned:
            yield f"{verb} on CPU {format_cpu_list(found)}, planned was {format_cpu_list(planned)}"
