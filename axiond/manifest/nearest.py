"""What a user may have meant by a name that does not exist."""

from collections.abc import Iterable

from rapidfuzz import fuzz, process


def nearest(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """The candidates most like *name*, the likest first; empty if none is like it."""
    found = process.extract(name, tuple(candidates), scorer=fuzz.ratio, limit=limit, score_cutoff=60)
    best = found[0][1] if found else 0
    return [str(candidate) for candidate, score, _ in found if score >= best - 15]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    return f"did you mean {' or '.join(map(quoted, found))}?" if (found := nearest(name, candidates)) else ""


def quoted(text: str) -> str:
    return f'"{text}"'
