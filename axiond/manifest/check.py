"""What no single field can tell: names that clash, routes that lead nowhere, sources that mean nothing."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from axiond.errors import SourceError
from axiond.manifest.check_domains import check_domains
from axiond.manifest.check_routes import check_routes
from axiond.manifest.clash import Clash, Known
from axiond.manifest.document import KeyPath
from axiond.manifest.nearest import did_you_mean, quoted
from axiond.sources.source import parse

ROUTE = "a route"


def check(tree: Mapping[str, Any], *, is_complete: bool) -> Iterator[Clash]:
    """
    Yield what is wrong between the parts of a manifest.

    The tables may still hold values of any type: whatever is not understood is some other check's business.
    Unless *is_complete*, a file is missing from them, and names that do not exist may exist there.
    """
    models, routes = tree["models"], tree["routes"]
    yield from _check_names(models, routes)
    if is_complete:
        yield from _check_targets(models, routes)
    for name, spec in models.items():
        yield from _check_model(name, spec)
    names = {public: str(at[1]) for _, public, at in _model_names(models)}
    known = Known.of(tree, names, is_complete=is_complete)
    yield from _check_groups(known)
    yield from check_routes(known)
    yield from check_domains(known)


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
    route_names = list(_route_names(routes))
    asked_for = ((ROUTE, name, at) for name, at, has_conditions in route_names if not has_conditions)
    for owner, public, at in chain(_model_names(models), asked_for):
        owned_by, other = first.setdefault(public, (owner, at))
        is_adapter = "lora" in (at[-2], other[-2])
        if other != at and (owned_by != owner or owner == ROUTE or is_adapter):
            yield Clash(at, f"the name {quoted(public)} is already taken by {owned_by}", "requests could not tell them apart", other)
    named: dict[str, KeyPath] = {}
    for name, at, _ in route_names:
        if (other := named.setdefault(name, at)) != at:
            yield Clash(at, f"the name {quoted(name)} is already taken by {ROUTE}", "answers and metrics could not tell them apart", other)


def _model_names(models: Mapping[str, Any]) -> Iterator[tuple[str, str, KeyPath]]:
    """Owner, name and place of every name that requests may use for a model."""
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


def _route_names(routes: list[Any]) -> Iterator[tuple[str, KeyPath, bool]]:
    """Name and place of every route, and whether it has conditions; without, requests ask for its name."""
    for index, route in enumerate(routes):
        if isinstance(route, Mapping) and isinstance(name := route.get("name"), str):
            yield name, ("routes", index, "name"), route.get("when") is not None


def _check_groups(known: Known) -> Iterator[Clash]:
    first: dict[str, KeyPath] = {}
    for group, keys in known.server.key_groups.items() if known.server else ():
        for index, key in enumerate(keys):
            at: KeyPath = ("server", "key_groups", group, index)
            other = first.setdefault(key.get_secret_value(), at)
            if other[2] != group:
                yield Clash(at, f"is a key of the group {quoted(str(other[2]))} too", "a key belongs to one group", other)


def _check_targets(models: Mapping[str, Any], routes: list[Any]) -> Iterator[Clash]:
    names = {public: str(at[1]) for _, public, at in _model_names(models)}
    for index, route in enumerate(routes):
        for at, target in _targets(route):
            if target not in models:
                yield Clash(("routes", index, *at), f"there is no model {quoted(target)}", _remedy(target, models, names))


def _targets(route: Any) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(route, Mapping):
        return
    shares = route.get("models")
    for index, share in enumerate(shares if isinstance(shares, list) else ()):
        if isinstance(share, str):
            yield ("models", index), share
        else:
            yield from _target(("models", index), share)
    for action in ("canary", "shadow"):
        yield from _target((action,), route.get(action))
    yield from ((("fallback", index), target) for index, target in _texts(route.get("fallback")))


def _target(at: KeyPath, table: Any) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(table, Mapping) and isinstance(target := table.get("model"), str):
        yield (*at, "model"), target


def _remedy(target: str, models: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if target in names:
        return f"that is a name of the model {quoted(names[target])}; routes lead to models"
    return did_you_mean(target, models) or (f"models: {', '.join(list(models)[:10])}" if models else "no models are defined")


def _texts(value: Any) -> Iterator[tuple[int, str]]:
    if isinstance(value, list):
        yield from ((index, text) for index, text in enumerate(value) if isinstance(text, str))
