"""Canned reports, as a daemon with one good, one failed and one changing model would send."""

from datetime import UTC, datetime, timedelta

from axiond.cpumap import cpus_report
from axiond.report import (
    Condition,
    ConditionType,
    CpusReport,
    EngineReport,
    FieldChange,
    KernelOp,
    KernelsReport,
    LeftLayers,
    ModelChange,
    ModelReport,
    Move,
    PlanReport,
    RejectionReport,
    SourceReport,
    Status,
    TrafficPlan,
    Untold,
)
from axiond.resources.machine import Core, Topology
from axiond.routereport import ConditionTried, FeaturesReport, RouteExplanation, RuleTried, ScoreReport, StepReport, VerdictReport


def condition(kind: ConditionType, status: str, reason: str, since: datetime, message: str = "") -> Condition:
    return Condition.model_validate(
        {
            "type": kind, "status": status, "reason": reason, "message": message,
            "observed_generation": 3, "last_transition_time": since,
        }
    )  # fmt: skip


def healthy(now: datetime) -> Status:
    """One model, ready."""
    engine = EngineReport(
        key="chat@0123456789ab", model="chat", digest="0123456789ab", replica=0, state="ready", since=now - timedelta(seconds=3723),
        is_routed=True, pids=(101, 102, 103), cores="0-3", memory_bytes=3 * 2**30, in_flight=2,
    )  # fmt: skip
    return Status(
        version="0.1.0", manifest="/etc/axiond/axiond.toml", etag="e3", generation=3, observed_generation=3, serving_generation=3,
        is_settled=True, daemon_memory_bytes=85 * 2**20,
        conditions=(
            condition(ConditionType.ACCEPTED, "True", "Valid", now - timedelta(days=2, hours=4)),
            condition(ConditionType.PROGRESSING, "False", "Settled", now - timedelta(minutes=5)),
            condition(ConditionType.READY, "True", "AllReady", now - timedelta(minutes=5)),
            condition(ConditionType.DEGRADED, "False", "AllReady", now - timedelta(minutes=5)),
            condition(ConditionType.ROLLED_BACK, "False", "Settled", now - timedelta(minutes=5)),
        ),
        models=(
            ModelReport(
                name="chat", names=("chat", "gpt"), load="eager", replicas=1, state="ready", since=now - timedelta(hours=1), in_flight=2,
                queued=3, wait_s=11.4,
            ),
        ),
        engines=(engine,), sources=(SourceReport(source="/models/chat", state="ready", weight_bytes=270 * 2**20),),
    )  # fmt: skip


def with_kernels(now: datetime) -> Status:
    """As `healthy()`, of an engine that has told about its kernels, and one that could not load them."""
    status = healthy(now)
    w4a8 = KernelOp(
        op="w4a8", layers=120, isa="avx512vnni", why="best for this operation; this CPU has avx512bf16",
        decode="matmul_f32_qs8_qs4p16x4_4x32_avx512vnni", prefill="matmul_f32_qs8_qs4p16x4_8x32_avx512vnni",
    )  # fmt: skip
    left = LeftLayers(what="bfloat16 weights", reason="its 80 inputs are no multiple of 32", layers=2)
    kernels = KernelsReport(ops=(w4a8, KernelOp(op="rms_norm", layers=61)), left=(left,))
    good = status.engines[0].model_copy(update={"kernels": kernels})
    problem = "axiond's kernels could not be loaded, vLLM's own are used: _native.so: cannot open shared object file"
    bad = good.model_copy(update={"key": "chat@0123456789ab#1", "replica": 1, "kernels": KernelsReport(problem=problem)})
    return status.model_copy(update={"engines": (good, bad)})


def cpus(now: datetime) -> CpusReport:
    """Sixteen cores with siblings on two nodes, one of them reserved, two forbidden, and two engines that share one."""
    cores = tuple(Core((n, n + 16), package=n // 8, node=n // 8, barred="not allowed" if n > 13 else "") for n in range(16))
    chat, code = (
        EngineReport(
            key=f"{name}@0123456789ab", model=name, digest="0123456789ab", replica=0, state="ready", since=now,
            cores=running, compute_cores=computing, core_notes=notes,
        )
        for name, running, computing, notes in (
            ("chat", "1-7,17-23", "1-7", ()),
            ("code", "7-11,24-27", "7-11", ("shares CPU 7 with chat: both name it",)),
        )
    )  # fmt: skip
    return cpus_report(Topology(cores, {0: 64 * 2**30, 1: 64 * 2**30}, 12.5), {0, 16}, (chat, code))


def rolled_back(now: datetime) -> Status:
    """Generation 4 was tried and could not be realised; 3 serves on."""
    good = healthy(now)
    failed = EngineReport(
        key="chat@ba9876543210", model="chat", digest="ba9876543210", replica=0, state="failed", since=now - timedelta(seconds=42),
        reason="exited with code 1 before it was ready", cores="0-3", memory_estimate_bytes=4 * 2**30, failures=1,
        tail=("Loading [bold]weights[/bold] :smile:", "OSError: no file named model.safetensors in /models/typo"),
    )  # fmt: skip
    return good.model_copy(
        update={
            "generation": 4, "observed_generation": 4,
            "conditions": (
                *good.conditions[:4],
                condition(ConditionType.ROLLED_BACK, "True", "EngineFailed", now - timedelta(seconds=42), "generation 4: chat: exited"),
            ),
            "engines": (*good.engines, failed),
            "rejection": RejectionReport(generation=4, model="chat", reason=failed.reason, tail=failed.tail[1:]),
            "sources": (*good.sources, SourceReport(source="org/big", state="fetching", reason="42 % of 3.1 GiB")),
        }
    )  # fmt: skip


def busy_plan() -> PlanReport:
    """One change of every kind."""
    return PlanReport(
        generation=4,
        models=(
            ModelChange(
                model="chat", verdict="restart", strategy="surge", memory_bytes=4 * 2**30,
                fields=(
                    FieldChange(path="max_model_len", old=2048, new=4096, change="engine"),
                    FieldChange(path="aliases", old=[], new=["gpt"], change="live"),
                ),
            ),
            ModelChange(model="code", verdict="load", memory_bytes=700 * 2**20),
            ModelChange(model="old", verdict="unload"),
            ModelChange(model="same", verdict="none"),
        ),
        server=(FieldChange(path="listen", old="127.0.0.1:8080", new="0.0.0.0:80", change="daemon"),),
        routes=(
            FieldChange(path="routes", old=["mix"], new=["code", "mix"], change="live"),
            FieldChange(path="routes.mix.fallback", old=None, new=["chat"], change="live"),
        ),
        domains=(FieldChange(path="semantic.threshold", old=0.3, new=0.4, change="live"),),
        auto=(FieldChange(path="auto.residency", old=True, new=False, change="live"),),
        traffic=TrafficPlan(
            requests=1200,
            since=datetime(2026, 1, 2, 11, 30, tzinfo=UTC),
            moves=(
                Move(from_route="", from_model="chat", to_route="code", to_model="code", count=84),
                Move(from_route="mix", from_model="chat", to_route="code", to_model="chat", count=12),
                Move(from_route="mix", from_model="old", to_route="", to_model="", to_status=404, count=7),
                Move(from_route="no", from_model="", from_status=403, to_route="mix", to_model="chat", count=1),
            ),
            untold=(Untold(reason="the header x-team was not looked at then", count=36),),
        ),
    )  # fmt: skip


def explained() -> RouteExplanation:
    """A request that the third rule takes, with all that can be told."""
    return RouteExplanation(
        generation=3,
        features=FeaturesReport(
            model="auto", path="/v1/chat/completions", key_group="staff", stream=True, tools=True, response_format="json_object",
            language="es", tokens=1210, least_tokens=900, most_tokens=4100,
        ),
        tried=(
            RuleTried(route="blue", matched=False, conditions=(
                ConditionTried(name="path", wants="/v1/*", met="/v1/chat/completions", holds=True),
                ConditionTried(name="headers.x-team", wants="^blue$", met="not there", holds=False),
            )),
            RuleTried(route="spanish", matched=None, conditions=(
                ConditionTried(name="language", wants="fr", met="not sure", holds=None),
            )),
            RuleTried(route="code", matched=True, conditions=(
                ConditionTried(name="domain", wants="code, technical", met="code (0.61 embedding)", holds=True),
            )),
        ),
        verdict=VerdictReport(domain="code", score=0.61, stage="embedding", scores={"legal": 0.08, "code": 0.61}, tokens=64),
        scores=(
            ScoreReport(model="coder", score=0.75, fit=0.9, wait_s=1.2, cost=0.5),
            ScoreReport(model="small", score=0.4, fit=0.4, wait_s=0.0),
            ScoreReport(model="cold", score=-1.0, fit=0.5),
            ScoreReport(model="broken", score=0.5, fit=0.5, can_answer=False),
        ),
        models=("coder", "small", "cold"), route="code", reason="route=code domain=code(0.61 embedding) score fit=0.90 wait=1s",
        fallback_on=("error", "overload"), timeout_s=2.5, max_wait_s=10, shadow="next",
        rewrites={"temperature": 0.2, "stop": ["\n\n"], "messages": "system prompt, prepend"},
        steps=(StepReport(step="features", took_us=41.2), StepReport(step="domain", took_us=3120), StepReport(step="rules", took_us=12.9)),
    )  # fmt: skip


def refused() -> RouteExplanation:
    """By a manifest without a daemon, whose embedding model is missing."""
    return RouteExplanation(
        generation=0,
        features=FeaturesReport(model="chat", path="/v1/completions", tokens=3, least_tokens=1, most_tokens=9),
        tried=(RuleTried(route="everything", matched=True),),
        route="everything", reason="route=everything refuse", refusal=(451, "Not [bold]here[/bold]."),
        lack="keywords alone tell domains until the next reload: semantic.embedding_model: source /m: there is no such folder",
    )  # fmt: skip
