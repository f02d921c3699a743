"""Which fields differ between two manifests, and what each difference costs. Pure."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from axiond.manifest.spec import Change, ModelSpec, Route, Server, change_of
from axiond.report import FieldChange


def changes(old: ModelSpec, new: ModelSpec) -> tuple[FieldChange, ...]:
    """Name every field of a model that differs."""
    return tuple(_walk(old, new, "", None))


def server_changes(old: Server, new: Server) -> tuple[FieldChange, ...]:
    """Name every setting of the daemon that differs."""
    return tuple(_walk(old, new, "server.", None))


def route_changes(old: tuple[Route, ...], new: tuple[Route, ...]) -> tuple[FieldChange, ...]:
    """Name every route that was added, removed or changed."""
    before, after = ({route.name: route for route in routes} for routes in (old, new))
    return tuple(
        FieldChange(path=f"routes.{name}", old=_plain(before.get(name)), new=_plain(after.get(name)), change=Change.LIVE)
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )


def _walk(old: BaseModel, new: BaseModel, prefix: str, inherited: Change | None) -> Iterator[FieldChange]:
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        change = change_of(type(new), name) or inherited
        if before == after:
            continue
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from _walk(before, after, f"{prefix}{name}.", change)
        else:
            assert change is not None
            yield FieldChange(path=prefix + name, old=_plain(before), new=_plain(after), change=change)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, SecretStr):
        return "**********"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if not isinstance(value, bool | int | float | str | dict | None) else value
