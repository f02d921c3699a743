"""Where the latest requests would go, in sentences. Pure."""

from collections.abc import Iterator
from typing import Final

from axiond.report import Move, TrafficPlan

_MAX_MOVES: Final = 10


def traffic_lines(traffic: TrafficPlan) -> Iterator[str]:
    """The largest share that moves first, then what cannot be told, and last what stays."""
    total = traffic.requests
    since = f", since {traffic.since:%Y-%m-%d %H:%M}" if traffic.since else ""
    yield f"Of the last {total:,} requests{since}:" if total > 1 else f"Of the last request{since}:"
    for move in traffic.moves[:_MAX_MOVES]:
        yield f"  {share(move.count, total)} would {_fate(move)}"
    if more := traffic.moves[_MAX_MOVES:]:
        yield f"  {share(sum(move.count for move in more), total)} would move in {len(more)} more ways, which --json shows"
    for untold in traffic.untold:
        yield f"  {share(untold.count, total)} cannot be told: {untold.reason}"
    kept = total - sum(move.count for move in traffic.moves) - sum(untold.count for untold in traffic.untold)
    yield f"  {share(kept, total)} would go where they go now"


def share(count: int, total: int) -> str:
    """In percent; what is more than nothing does not look like nothing, nor what is less than all like all."""
    percent = 100 * count / total
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.{0 if percent == round(percent) else 1}f} %"


def _fate(move: Move) -> str:
    old, new = _answerer(move.from_model, move.from_route), _answerer(move.to_model, move.to_route)
    if not move.to_model:
        now = old if move.from_model else f"with {move.from_status}"
        return f"be refused with {move.to_status}{new}, now {now}"
    if not move.from_model:
        return f"be answered by {new}, now refused with {move.from_status}{old}"
    if move.from_model == move.to_model:
        return f"stay with {move.to_model}, {_way(move.to_route)} instead of {_way(move.from_route)}"
    return f"move from {old} to {new}"


def _answerer(model: str, route: str) -> str:
    return f"{model} (route {route})" if route else model


def _way(route: str) -> str:
    return f"by route {route}" if route else "by its name"
