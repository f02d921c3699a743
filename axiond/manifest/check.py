"""What no single field can tell: names that clash, routes that lead nowhere, sources that mean nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from axiond.errors import SourceError
from axiond.manifest.document import KeyPath
from axiond.manifest.nearest import did_you_mean, quoted
from axiond.sources.source import parse


@dataclass(frozen=True, slots=True)
class Clash:
    """*other* is where the name was used first."""

    at: KeyPath
    what: str
    remedy: str = ""
    other: KeyPath | None = None


def check(models: Mapping[str, Any], routes: list[Any], *, is_complete: bool) -> Iterator[Clash]:
    """
    Yield what is wrong between the parts of a manifest.

    The tables may still hold values of any type: whatever is not understood is some other check's business.
    Unless *is_complete*, a file is missing from them, and names that do not exist may exist there.
    """
    yield from _check_names(models, routes)
    if is_complete:
        yield from _check_targets(models, routes)
    for name, spec in models.items():
        yield from _check_model(name, spec)


def _check_model(name: str, spec: Any) -> Iterator[Clash]:
    if not isinstance(spec, Mapping):
        return
    if isinstance(source := spec.get("source"), str) and source:
        try:
            parse(source)
        except SourceError as exc:
            yield Clash(("models", name, "source"), exc.problem)
    cores, replicas = spec.get("cores"), spec.get("replicas", 1)
    if isinstance(cores, list) and isinstance(replicas, int) and len(cores) < replicas:
        what = f"holds {len(cores)} CPU lists for {replicas} replicas"
        yield Clash(("models", name, "cores"), what, "give one for each replica, or a single one for all")


def _check_names(models: Mapping[str, Any], routes: list[Any]) -> Iterator[Clash]:
    first: dict[str, tuple[str, KeyPath]] = {}
    for owner, public, at in _public_names(models, routes):
        owned_by, other = first.setdefault(public, (owner, at))
        is_adapter = "lora" in (at[-2], other[-2])
        if other != at and (owned_by != owner or owner.startswith("a route") or is_adapter):
            yield Clash(at, f"the name {quoted(public)} is already taken by {owned_by}", "requests could not tell them apart", other)


def _public_names(models: Mapping[str, Any], routes: list[Any]) -> Iterator[tuple[str, str, KeyPath]]:
    """Owner, name and place of every name that a request may use."""
    for name, spec in models.items():
        owner, at = f"the model {quoted(name)}", ("models", name)
        if not isinstance(spec, Mapping):
            continue
        if not spec.get("served_names"):
            yield owner, name, at
        for field in ("served_names", "aliases"):
            yield from ((owner, text, (*at, field, index)) for index, text in _texts(spec.get(field)))
        if isinstance(lora := spec.get("lora"), Mapping):
            yield from ((owner, adapter, (*at, "lora", adapter)) for adapter in lora)
    for index, route in enumerate(routes):
        if isinstance(route, Mapping) and isinstance(route_name := route.get("name"), str):
            yield "a route", route_name, ("routes", index, "name")


def _check_targets(models: Mapping[str, Any], routes: list[Any]) -> Iterator[Clash]:
    names = {public: name for name, spec in models.items() if isinstance(spec, Mapping) for public in _own_names(spec)}
    for index, route in enumerate(routes):
        for at, target in _targets(route):
            if target not in models:
                yield Clash(("routes", index, *at), f"there is no model {quoted(target)}", _remedy(target, models, names))


def _own_names(spec: Mapping[str, Any]) -> Iterator[str]:
    yield from (text for field in ("served_names", "aliases") for _, text in _texts(spec.get(field)))


def _targets(route: Any) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(route, Mapping):
        return
    shares = route.get("models")
    for index, share in enumerate(shares if isinstance(shares, list) else ()):
        if isinstance(share, Mapping) and isinstance(target := share.get("model"), str):
            yield ("models", index, "model"), target
    yield from ((("fallback", index), target) for index, target in _texts(route.get("fallback")))


def _remedy(target: str, models: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if target in names:
        return f"that is a name of the model {quoted(names[target])}; routes lead to models"
    return did_you_mean(target, models) or (f"models: {', '.join(list(models)[:10])}" if models else "no models are defined")


def _texts(value: Any) -> Iterator[tuple[int, str]]:
    if isinstance(value, list):
        yield from ((index, text) for index, text in enumerate(value) if isinstance(text, str))
