"""What the daemon tells about itself: the JSON of the admin endpoint, which the CLI reads back."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class ConditionType(StrEnum):
    ACCEPTED = "Accepted"
    PLANNED = "Planned"
    PROGRESSING = "Progressing"
    READY = "Ready"
    DEGRADED = "Degraded"
    ROLLED_BACK = "RolledBack"


class Condition(Report):
    """As in Kubernetes: a statement, whether it holds, and since when."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observed_generation: int
    last_transition_time: datetime


class KernelOp(Report):
    """One kind of layer on axiond's kernels; *decode* and *prefill* are those for 1 and for 128 rows."""

    op: str
    layers: int
    isa: str = ""
    why: str = ""
    decode: str = ""
    prefill: str = ""


class LeftLayers(Report):
    """Layers on vLLM's own kernels, and why they are."""

    what: str
    reason: str
    layers: int


class KernelsReport(Report):
    """What an engine's worker says about its kernels: *mode* is eager or compiled, *weights* where those that are packed come from."""

    problem: str = ""
    mode: str = ""
    weights: str = ""
    ops: tuple[KernelOp, ...] = ()
    left: tuple[LeftLayers, ...] = ()


class EngineReport(Report):
    key: str
    model: str
    digest: str
    replica: int
    state: str
    since: datetime
    reason: str = ""
    is_routed: bool = False
    pids: tuple[int, ...] = ()
    cores: str = ""
    compute_cores: str = ""
    memory_nodes: str = ""
    core_notes: tuple[str, ...] = ()
    memory_estimate_bytes: int = 0
    memory_arithmetic: str = ""
    memory_bytes: int = 0
    memory_ceiling_bytes: int = 0
    in_flight: int = 0
    failures: int = 0
    kernels: KernelsReport | None = None
    tail: tuple[str, ...] = ()


class CoreReport(Report):
    """
    One physical core.

    *barred* says why nothing may run there. Of engines, those that *compute* there, and those with *others* of their threads.
    """

    cpus: tuple[int, ...]
    package: int
    node: int
    cluster: int
    kind: Literal["big", "little"]
    barred: str = ""
    is_reserved: bool = False
    compute: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class CpusReport(Report):
    """The machine's cores and who runs there; *notes* are what is not as one would wish, for each engine."""

    cores: tuple[CoreReport, ...]
    node_memory_bytes: dict[int, int] = {}
    quota_cpus: float | None = None
    notes: dict[str, tuple[str, ...]] = {}


class SourceReport(Report):
    source: str
    state: str
    reason: str = ""
    weight_bytes: int = 0


class ModelReport(Report):
    """
    *wait_s* is how long a request that came now would queue behind the others; None where that is not known. *loads* counts
    starts of its engines, *unloads* their ends by cause, as long as the daemon runs.
    """

    name: str
    names: tuple[str, ...]
    load: str
    replicas: int
    state: str
    since: datetime | None = None
    reason: str = ""
    queued: int = 0
    in_flight: int = 0
    wait_s: float | None = None
    loads: int = 0
    unloads: Mapping[str, int] = {}


class MemoryReport(Report):
    """
    The memory of all engines: what they may use, what is promised to those that run, and what they use.

    *free_bytes* is what this machine, or the tightest control group, has left.
    """

    budget_bytes: int
    promised_bytes: int
    used_bytes: int
    free_bytes: int


class RejectionReport(Report):
    """Why a generation was not realised; *tail* holds the failed engine's last output lines."""

    generation: int
    model: str
    reason: str
    tail: tuple[str, ...] = ()


class ForkServerReport(Report):
    """The process that engines are forked from: *state* is off, starting, ready or given up, and *problem* what failed last."""

    state: str
    pid: int = 0
    memory_bytes: int = 0
    forked: int = 0
    problem: str = ""


class Status(Report):
    """
    *generation* is the newest manifest read; *observed_generation* the one last acted on; *serving_generation* the one routed.

    *routes*: how many requests each has decided about since the start; "" counts those that rules left to their model's name.
    """

    version: str
    manifest: str
    etag: str
    generation: int
    observed_generation: int
    serving_generation: int
    is_settled: bool
    conditions: tuple[Condition, ...]
    models: tuple[ModelReport, ...]
    engines: tuple[EngineReport, ...]
    sources: tuple[SourceReport, ...]
    rejection: RejectionReport | None = None
    memory: MemoryReport | None = None
    daemon_memory_bytes: int = 0
    fork_server: ForkServerReport | None = None
    routes: Mapping[str, int] = {}

    def only(self, model: str) -> "Status":
        """The same without other models and their engines."""
        models = tuple(found for found in self.models if found.name == model)
        return self.model_copy(update={"models": models, "engines": tuple(found for found in self.engines if found.model == model)})


class FieldChange(Report):
    """One field that differs; *change* is its class: live, engine or daemon."""

    path: str
    old: Any = None
    new: Any = None
    change: str


class ModelChange(Report):
    model: str
    verdict: Literal["none", "live", "restart", "load", "unload", "scale"]
    strategy: Literal["surge", "stop-first", ""] = ""
    fields: tuple[FieldChange, ...] = ()
    memory_bytes: int = 0
    memory_arithmetic: str = ""


class MemoryPlan(Report):
    """What models that are always loaded need together, against the budget; *problem* is why the manifest would be rejected."""

    budget_bytes: int
    needed_bytes: int
    problem: str = ""


class Move(Report):
    """
    Remembered requests that a candidate manifest would treat otherwise.

    Where no model answers, it is "" and the status says how they are refused. Without a route, the name decides.
    """

    from_route: str
    from_model: str
    from_status: int = 0
    to_route: str
    to_model: str
    to_status: int = 0
    count: int


class Untold(Report):
    """Remembered requests of which it cannot be told what a candidate manifest would do with them, and why."""

    reason: str
    count: int


class TrafficPlan(Report):
    """What would become of the latest requests; those that are neither in *moves* nor in *untold* go where they go now."""

    requests: int
    since: datetime | None = None
    moves: tuple[Move, ...] = ()
    untold: tuple[Untold, ...] = ()


class PlanReport(Report):
    """What a candidate manifest would do; *domains* are changes of [domains] and [semantic]."""

    generation: int
    models: tuple[ModelChange, ...]
    server: tuple[FieldChange, ...] = ()
    routes: tuple[FieldChange, ...] = ()
    domains: tuple[FieldChange, ...] = ()
    auto: tuple[FieldChange, ...] = ()
    memory: MemoryPlan | None = None
    traffic: TrafficPlan | None = None

    @property
    def is_empty(self) -> bool:
        fields = (*self.server, *self.routes, *self.domains, *self.auto)
        return not (fields or any(change.verdict != "none" for change in self.models))


class ReloadReport(Report):
    """How a reload ended: accepted and realised, or rejected with the reason."""

    generation: int
    is_accepted: bool
    is_realised: bool
    message: str = ""


class Event(Report):
    """Something that happened, as `GET /admin/v1/events` streams it."""

    time: datetime
    name: str
    fields: dict[str, Any] = {}
