"""
Reports as tables for people. Pure: report in, rich renderable out; the clock comes in as *now*.

Strings are meant literally: the console that prints them has markup, emoji and highlighting off.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from axiond.report import (
    Condition,
    CoreReport,
    CpusReport,
    EngineReport,
    Event,
    FieldChange,
    KernelsReport,
    MemoryPlan,
    MemoryReport,
    ModelReport,
    PlanReport,
    SourceReport,
    Status,
)
from axiond.resources.machine import format_cpu_list
from axiond.routereport import RouteExplanation, RuleTried, ScoreReport, VerdictReport
from axiond.traffic import traffic_lines

_STYLES: Final = {
    "ready": "green", "starting": "yellow", "fetching": "yellow", "draining": "cyan", "stopping": "cyan", "backoff": "red",
    "failed": "red", "none": "dim", "live": "green", "scale": "yellow", "load": "yellow", "restart": "yellow", "unload": "red",
    "unavailable": "red", "unloaded": "dim", "unloading": "cyan",
}  # fmt: skip
_BAD_WHEN_TRUE: Final = frozenset({"Degraded", "RolledBack"})
_VERDICT_WORDS: Final = {
    "load": "to load", "restart": "to restart", "scale": "to scale", "unload": "to unload", "live": "changed live", "none": "unchanged",
}  # fmt: skip
_MAX_VALUE_CHARS: Final = 60
_MAX_REASON_CHARS: Final = 160
_MAX_TAIL_LINES: Final = 10
_MAX_DOMAINS: Final = 8


def status_view(status: Status, now: datetime, *, with_kernels: bool = False) -> RenderableType:
    """Everything `axiond status` shows; of the kernels only what is wrong, unless they are asked for."""
    parts: list[RenderableType] = [_headline(status), _conditions(status.conditions, now)]
    if status.models:
        parts.append(_models(status.models, now))
    if status.routes:
        counts = sorted(status.routes.items(), key=lambda found: (-found[1], found[0]))
        parts.append("Requests by route: " + ", ".join(f"{route or '(by name)'} {count:,}" for route, count in counts))
    if status.engines:
        parts.append(_engines(status.engines, now))
    parts += [
        _with_lines(f"Kernels of {engine.key}:", (engine.kernels.problem,))
        for engine in status.engines
        if engine.kernels and engine.kernels.problem
    ]
    parts += [_with_lines(f"Cores of {engine.key}:", engine.core_notes) for engine in status.engines if engine.core_notes]
    if with_kernels:
        parts.append(_kernels(status.engines))
        parts += [f"Memory of {engine.key}: {engine.memory_arithmetic}" for engine in status.engines if engine.memory_arithmetic]
    if any(source.state != "ready" for source in status.sources):
        parts.append(_sources(status.sources))
    if rejection := status.rejection:
        head = f"Generation {rejection.generation} was not realised: {rejection.model}: {rejection.reason}"
        parts.append(_with_lines(head, rejection.tail))
    parts += [
        _with_lines(f"Last lines of {engine.key}:", engine.tail)
        for engine in status.engines
        if engine.tail and engine.state in ("failed", "backoff")
    ]
    return Group(*[line for part in parts for line in (part, "")][:-1])


def cpus_view(report: CpusReport) -> RenderableType:
    """Physical cores, neighbours alike in one line; then nodes, quota and what is not as one would wish."""
    table = _table("CPU", ">Cores", "Node", "Kind", "Runs there")
    for (node, kind, who), group in groupby(report.cores, lambda core: (core.node, core.kind, _occupants(core))):
        cores = tuple(group)
        table.add_row(format_cpu_list(cpu for core in cores for cpu in core.cpus), str(len(cores)), str(node), kind, who)
    nodes = ", ".join(f"{node}: {_size(size)}" for node, size in report.node_memory_bytes.items())
    words = [f"Memory of node {nodes}."] if nodes else []
    words += [f"Control groups grant the time of {report.quota_cpus:g} CPUs."] if report.quota_cpus else []
    words += [f"{key}: {note}" for key, notes in report.notes.items() for note in notes]
    return Group(table, "", *words)


def _occupants(core: CoreReport) -> str:
    if core.barred:
        return core.barred
    words = ["axiond"] if core.is_reserved else []
    words += core.compute
    words += [f"{key} (API server)" for key in core.others]
    return ", ".join(words) or "nobody"


def plan_view(plan: PlanReport) -> RenderableType:
    """Per model what would happen and which fields are responsible; last, the sum."""
    table = _table("Model", "Verdict", "Strategy", "Fields", ">Memory")
    for change in plan.models:
        table.add_row(
            change.model,
            _styled(change.verdict),
            change.strategy,
            _fields(change.fields),
            _size(change.memory_bytes) if change.memory_bytes else "",
        )
    for name, fields in _tables_of(plan):
        if fields:
            table.add_row(name, "", "", _fields(fields), "")
    parts: list[RenderableType] = [table, ""] if table.row_count else []
    parts += [f"{change.model}: {change.memory_arithmetic}" for change in plan.models if change.memory_arithmetic]
    parts += [_memory_plan(plan.memory), ""] if plan.memory and plan.memory.needed_bytes else []
    parts += [*traffic_lines(plan.traffic), ""] if plan.traffic and plan.traffic.requests and not plan.is_empty else []
    return Group(*parts, plan_sentence(plan))


def _tables_of(plan: PlanReport) -> tuple[tuple[str, tuple[FieldChange, ...]], ...]:
    return ("[server]", plan.server), ("[[routes]]", plan.routes), ("[domains]", plan.domains), ("[auto]", plan.auto)


def _memory_plan(memory: MemoryPlan) -> Text:
    words = f"Together, models that are always loaded need {_size(memory.needed_bytes)} of a budget of {_size(memory.budget_bytes)}."
    return Text(words, "bold red" if memory.problem else "")


def plan_sentence(plan: PlanReport) -> str:
    """The sum of a plan, in words."""
    if plan.is_empty:
        return "Nothing to do: what runs is what the manifest says."
    counts = Counter[str](change.verdict for change in plan.models)
    words = [f"{counts[verdict]} {word}" for verdict, word in _VERDICT_WORDS.items() if counts[verdict]]
    said = (("server settings", plan.server), ("routes", plan.routes), ("domains", plan.domains), ("scores", plan.auto))
    words += [f"{what} changed" for what, fields in said if fields]
    needs_restart = any(field.change == "daemon" for field in plan.server)
    return f"Plan: {', '.join(words)}." + (" Some settings take effect when axiond itself restarts." if needs_restart else "")


def event_line(event: Event) -> Text:
    """One event as one line."""
    fields = " ".join(f"{name}={_value(value)}" for name, value in event.fields.items())
    return Text.assemble((f"{event.time:%H:%M:%S} ", "dim"), (event.name, "bold"), f" {fields}" if fields else "")


def exit_code(status: Status) -> int:
    """0 when the newest manifest is served in full, else 2."""
    found = {str(condition.type): condition.status for condition in status.conditions}
    is_well = found.get("Ready") == "True" and found.get("Accepted") != "False" and all(found.get(bad) != "True" for bad in _BAD_WHEN_TRUE)
    return 0 if is_well else 2


def duration(seconds: float) -> str:
    """The two largest units: 42s, 5m12s, 3h07m, 2d04h."""
    whole = max(0, int(seconds))
    for unit_s, unit, part_s, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit_s:
            return f"{whole // unit_s}{unit}{whole % unit_s // part_s:02d}{part}"
    return f"{whole}s"


def route_view(found: RouteExplanation) -> RenderableType:
    """What `axiond route explain` shows: the request, every rule tried, what it is about, how models score, what becomes of it."""
    parts: list[RenderableType] = [_asked(found)]
    if found.tried:
        parts.append(_rules_tried(found.tried))
    if found.verdict:
        parts.append(_about(found.verdict))
    if found.scores:
        parts.append(_scores(found.scores))
    parts.append(_decision(found))
    return Group(*[line for part in parts for line in (part, "")][:-1])


def _asked(found: RouteExplanation) -> Text:
    seen = found.features
    words = [f"about {seen.tokens:,} tokens ({seen.least_tokens:,} to {seen.most_tokens:,})"]
    words += [f"language {seen.language}"] if seen.language else []
    words += [word for word, is_so in (("stream", seen.stream), ("tools", seen.tools), ("images", seen.images)) if is_so]
    words += [seen.response_format] if seen.response_format != "text" else []
    words += [f"key group {seen.key_group}"] if seen.key_group else []
    by = f"generation {found.generation}" if found.generation else "the manifest alone"
    lack = ("\n" + found.lack, "bold red") if found.lack else ""
    return Text.assemble((seen.model, "bold"), f" on {seen.path}, by {by}\n{', '.join(words)}", lack)


def _rules_tried(tried: Iterable[RuleTried]) -> Table:
    table = _table("Rule", "Matches", "Condition", "Wants", "Met", "Holds")
    for rule in tried:
        rows = [(it.name, _value(it.wants), _value(it.met), _yes(it.holds)) for it in rule.conditions]
        for index, row in enumerate(rows or [("", "", "", Text())]):
            table.add_row("" if index else rule.route, Text() if index else _yes(rule.matched), *row)
    return table


def _yes(holds: bool | None) -> Text:
    return Text("?", "yellow") if holds is None else Text("yes", "green") if holds else Text("no", "dim")


def _about(verdict: VerdictReport) -> RenderableType:
    read = f", {verdict.tokens} tokens read" if verdict.tokens else ""
    best = sorted(verdict.scores.items(), key=lambda found: -found[1])[:_MAX_DOMAINS]
    scores = ", ".join(f"{domain} {score:.2f}" for domain, score in best)
    return Text.assemble("About: ", (verdict.domain or "no domain", "bold"), f" ({verdict.stage}{read})", f"\n{scores}" if scores else "")


def _scores(scores: Iterable[ScoreReport]) -> Table:
    table = _table("Model", ">Score", ">Fit", ">Wait", ">Cost")
    for found in scores:
        wait = "cannot answer" if not found.can_answer else "?" if found.wait_s is None else duration(math.ceil(found.wait_s))
        table.add_row(found.model, f"{found.score:.3f}", f"{found.fit:.2f}", wait, f"{found.cost:g}")
    return table


def _decision(found: RouteExplanation) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    if found.refusal:
        table.add_row("Refused", Text(f"{found.refusal[0]}: {found.refusal[1]}", "red"))
    else:
        first, *rest = found.models or ("nobody",)
        when = f" on {', '.join(found.fallback_on)}" if found.fallback_on else ""
        table.add_row("Answers", Text.assemble((first, "bold green"), f", or else {', '.join(rest)}{when}" if rest else ""))
    limits = [(found.timeout_s, "answer begun within"), (found.max_wait_s, "turn within")]
    rows = [
        ("Route", found.route or "none: by the name alone"),
        ("Reason", found.reason),
        ("Limits", ", ".join(f"{word} {seconds:g} s" for seconds, word in limits if seconds is not None)),
        ("Shadow", found.shadow),
        ("Sets", ", ".join(f"{name}={_value(value)}" for name, value in found.rewrites.items())),
        ("Took", ", ".join(f"{step.step} {step.took_us:,.0f} µs" for step in found.steps)),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, value)
    return table


def _headline(status: Status) -> Text:
    acted = "" if status.observed_generation == status.generation else f", acted on {status.observed_generation}"
    serving = f"serving {status.serving_generation}" if status.serving_generation else "serving none yet"
    settled = "settled" if status.is_settled else "in progress"
    memory = f", daemon {_size(status.daemon_memory_bytes)}" if status.daemon_memory_bytes else ""
    if (forks := status.fork_server) and forks.state != "off":
        memory += f", fork server {_size(forks.memory_bytes)}" if forks.state == "ready" else f", fork server {forks.state}"
    return Text.assemble(
        (f"axiond {status.version}", "bold"),
        f"  {status.manifest}\ngeneration {status.generation}{acted}, {serving}, {settled}{memory}",
        _memory(status.memory) if status.memory else "",
    )


def _memory(memory: MemoryReport) -> str:
    room = f"{_size(memory.used_bytes)} used, {_size(memory.promised_bytes)} promised of {_size(memory.budget_bytes)}"
    return f"\nmemory of engines: {room}; {_size(memory.free_bytes)} are free"


def _conditions(conditions: Iterable[Condition], now: datetime) -> Table:
    table = _table("Condition", "Status", "For", "Reason", "Message")
    for condition in conditions:
        is_bad = condition.status == ("True" if condition.type in _BAD_WHEN_TRUE else "False") and condition.type != "Progressing"
        age = duration((now - condition.last_transition_time).total_seconds())
        table.add_row(condition.type, Text(condition.status, "red" if is_bad else ""), age, condition.reason, _shortened(condition.message))
    return table


def _models(models: Iterable[ModelReport], now: datetime) -> Table:
    table = _table("Model", "State", "Since", "Load", ">Replicas", ">In flight", ">Queued", ">Wait", "Names", "Reason")
    for model in models:
        wait = "?" if model.wait_s is None else duration(math.ceil(model.wait_s))
        counts = (str(model.replicas), str(model.in_flight), str(model.queued), wait)
        since = duration((now - model.since).total_seconds()) if model.since else ""
        table.add_row(model.name, _styled(model.state), since, model.load, *counts, ", ".join(model.names), _shortened(model.reason))
    return table


def _engines(engines: Iterable[EngineReport], now: datetime) -> Table:
    table = _table("Engine", "State", "Since", "Routed", "Pids", "Cores", ">Memory", ">In flight", "Reason")
    for engine in engines:
        table.add_row(
            engine.key,
            _styled(engine.state),
            duration((now - engine.since).total_seconds()),
            "yes" if engine.is_routed else "no",
            " ".join(map(str, engine.pids)),
            engine.cores,
            _used(engine),
            str(engine.in_flight),
            _shortened(engine.reason),
        )
    return table


def _used(engine: EngineReport) -> str:
    sizes = (_size(engine.memory_bytes), f"~{_size(engine.memory_estimate_bytes)}")
    return " of ".join(size for size, known in zip(sizes, (engine.memory_bytes, engine.memory_estimate_bytes), strict=True) if known)


def _kernels(engines: Iterable[EngineReport]) -> RenderableType:
    table = _table("Engine", "Operation", ">Layers", "Runs on", "Why")
    for engine in engines:
        kernels = engine.kernels or KernelsReport()
        said = (("execution", kernels.mode), ("packed weights", kernels.weights))
        rows = [(what, "", "", how) for what, how in said if how]
        rows += [(found.op, str(found.layers), found.isa or "axiond", found.why) for found in kernels.ops]
        rows += [(found.what, str(found.layers), "vLLM", found.reason) for found in kernels.left]
        for index, row in enumerate(rows):
            table.add_row("" if index else engine.key, *row)
    return table if table.row_count else Text("No engine runs on axiond's kernels.")


def _sources(sources: Iterable[SourceReport]) -> Table:
    table = _table("Source", "State", ">Weights", "Reason")
    for source in sources:
        table.add_row(source.source, _styled(source.state), _size(source.weight_bytes) if source.weight_bytes else "", source.reason)
    return table


def _with_lines(head: str, lines: Sequence[str]) -> RenderableType:
    more = [f"… {len(lines) - _MAX_TAIL_LINES} lines before, in axiond status --json"] if len(lines) > _MAX_TAIL_LINES else []
    return Group(Text(head, "bold red"), Padding("\n".join((*more, *lines[-_MAX_TAIL_LINES:])), (0, 0, 0, 2)))


def _table(*columns: str) -> Table:
    """A plain table; a column name that starts with > is set right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _styled(word: str) -> Text:
    return Text(word, _STYLES.get(word, ""))


def _fields(fields: Iterable[FieldChange]) -> Text:
    return Text("\n").join(map(_field, fields))


def _field(field: FieldChange) -> Text:
    old, new = _value(field.old), _value(field.new)
    if old.endswith("…") and isinstance(field.old, list) and isinstance(field.new, list):
        gone, come = _without(field.old, field.new), _without(field.new, field.old)
        if gone or come:
            old = f"{len(field.old)} entries" + (f", gone: {_value(gone)}" if gone else "")
            new = f"{len(field.new)} entries" + (f", new: {_value(come)}" if come else "")
    return Text.assemble(field.path, ": ", (old, "red"), " -> ", (new, "green"), (f" ({field.change})", "dim"))


def _without(items: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    return [item for item in items if item not in others]


def _value(value: Any) -> str:
    text = "unset" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _shortened(text, _MAX_VALUE_CHARS)


def _shortened(text: str, most_chars: int = _MAX_REASON_CHARS) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= most_chars else one_line[: most_chars - 1] + "…"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
