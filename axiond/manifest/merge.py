"""Many documents to one tree, which remembers where each part of it was written."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from axiond.manifest.document import Document, Finding, KeyPath, dotted, follow
from axiond.manifest.nearest import did_you_mean, quoted
from axiond.manifest.spec import ModelSpec, Server

TABLES = ("server", "defaults", "models", "domains", "semantic", "auto")
TOP_LEVEL = (*TABLES, "routes", "include", "$schema")


@dataclass(slots=True)
class Merged:
    """*tables* as the files hold them together; *owners* tells for every entry of them the file and the place in it."""

    tables: dict[str, dict[str, Any]] = field(default_factory=lambda: {name: {} for name in TABLES})
    routes: list[Any] = field(default_factory=list)
    owners: dict[KeyPath, tuple[Document, KeyPath]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def tree(self) -> dict[str, Any]:
        """What `Manifest` takes: the defaults are in every model."""
        defaults = self.tables["defaults"]
        models = {name: overlay(defaults, model) for name, model in self.tables["models"].items()}
        rest = {name: table for name, table in self.tables.items() if name != "defaults"}
        return {**rest, "models": models, "routes": self.routes}

    def origin(self, at: KeyPath) -> tuple[Document, KeyPath] | None:
        """Where a key path of the tree was written: in a file of its own, or in the defaults."""
        if not (owner := self.owners.get(at[:2])):
            return None
        document, entry = owner
        here = follow(document.data, (*entry, *at[2:]))[1]
        is_whole = len(here) == len(entry) + len(at) - 2
        if at[0] == "models" and not is_whole and (default := self.owners.get(("defaults", *at[2:3]))):
            there = follow(default[0].data, ("defaults", *at[2:]))[1]
            if len(there) > len(here) - 1:
                return default[0], ("defaults", *at[2:])
        return document, (*entry, *at[2:])

    def written(self, at: KeyPath) -> Any:
        """The value at a key path of the tree, before variables were replaced; None if there is none."""
        document, there = self.origin(at) or (None, ())
        value, reached = follow(document.raw, there) if document else (None, there)
        return value if reached == there else None


def merge(documents: Iterable[Document]) -> Merged:
    merged = Merged()
    for document in documents:
        for key, value in document.data.items():
            if key in TABLES:
                _add_table(merged, document, key, value)
            elif key == "routes":
                _add_routes(merged, document, value)
    return merged


def unknown_tables(documents: Iterable[Document]) -> Iterator[Finding]:
    for document in documents:
        yield from (Finding(document, (key,), "no such table", _top_level_remedy(key)) for key in document.data if key not in TOP_LEVEL)


def overlay(under: Mapping[str, Any], over: Any) -> Any:
    """Tables are merged all the way down; anything else of *over* wins."""
    if not isinstance(over, Mapping):
        return over
    both = {key: overlay(under[key], over[key]) for key in under.keys() & over.keys() if isinstance(under[key], Mapping)}
    return {**under, **over, **both}


def _add_table(merged: Merged, document: Document, table: str, entries: Any) -> None:
    if not isinstance(entries, Mapping):
        example = "[models.NAME]" if table == "models" else f"[{table}]"
        merged.findings.append(Finding(document, (table,), "must be a table", f"write {example}"))
        return
    for key, value in entries.items():
        if first := merged.owners.get((table, key)):
            what = f"the model {quoted(key)} is defined twice" if table == "models" else f"{dotted((table, key))} is set twice"
            merged.findings.append(Finding(document, (table, key), what, "remove one", other=first))
            continue
        merged.tables[table][key] = value
        merged.owners[table, key] = document, (table, key)


def _add_routes(merged: Merged, document: Document, routes: Any) -> None:
    if not isinstance(routes, list):
        merged.findings.append(Finding(document, ("routes",), "must be a list of tables", "write [[routes]]"))
        return
    for index, route in enumerate(routes):
        merged.owners["routes", len(merged.routes)] = document, ("routes", index)
        merged.routes.append(route)


def _top_level_remedy(key: str) -> str:
    if key in Server.model_fields:
        return "this belongs into [server]"
    if key in ModelSpec.model_fields:
        return "this belongs into [models.NAME] or [defaults]"
    return did_you_mean(key, TOP_LEVEL) or f"there are {', '.join(TOP_LEVEL[:-1])}"
