"""What differs between two manifests, field by field, with what each change costs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, SecretStr

from axiond.manifest.document import dotted
from axiond.manifest.spec import Auto, Change, Manifest, ModelSpec, Route, Server, change_of
from axiond.report import FieldChange


def changes(old: ModelSpec, new: ModelSpec) -> tuple[FieldChange, ...]:
    """Paths are relative to the model: `chunked_prefill.enabled`, `engine_args.seed`."""
    return tuple(_table_changes((), old, new))


def server_changes(old: Server, new: Server) -> tuple[FieldChange, ...]:
    return tuple(_table_changes(("server",), old, new))


def route_changes(old: Sequence[Route], new: Sequence[Route]) -> tuple[FieldChange, ...]:
    """Routes are told apart by name. As the first that matches decides, their order is a field too: it says where new ones went."""
    before, after = {route.name: route for route in old}, {route.name: route for route in new}
    kept = [name for name in before if name in after]
    is_in_order = list(after)[: len(kept)] == kept
    order = () if is_in_order else (_change(("routes",), list(before), list(after), Change.LIVE),)
    return (*order, *_entry_changes(("routes",), before, after, Change.LIVE))


def domain_changes(old: Manifest, new: Manifest) -> tuple[FieldChange, ...]:
    """What prompts can be about, and how that is found."""
    return (
        *_entry_changes(("domains",), old.domains, new.domains, Change.LIVE),
        *_table_changes(("semantic",), old.semantic, new.semantic),
    )


def auto_changes(old: Auto, new: Auto) -> tuple[FieldChange, ...]:
    return tuple(_table_changes(("auto",), old, new))


def _table_changes(at: tuple[str, ...], old: BaseModel, new: BaseModel) -> Iterator[FieldChange]:
    for name in type(new).model_fields:
        yield from _value_changes((*at, name), getattr(old, name), getattr(new, name), change_of(type(new), name))


def _entry_changes(at: tuple[str, ...], old: Mapping[str, Any], new: Mapping[str, Any], change: Change | None) -> Iterator[FieldChange]:
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new:
            yield from _value_changes((*at, key), old[key], new[key], change)
        else:
            yield _change((*at, key), old.get(key), new.get(key), change)


def _value_changes(at: tuple[str, ...], old: Any, new: Any, change: Change | None) -> Iterator[FieldChange]:
    if _is_equal(old, new):
        return
    if isinstance(old, BaseModel) and isinstance(new, BaseModel):
        yield from _table_changes(at, old, new)
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _entry_changes(at, old, new, change)
    else:
        yield _change(at, old, new, change)


def _change(at: tuple[str, ...], old: Any, new: Any, change: Change | None) -> FieldChange:
    return FieldChange(path=dotted(at), old=_plain(old), new=_plain(new), change=str(change))


def _is_equal(old: Any, new: Any) -> bool:
    """As the digest sees it: 1, 1.0 and true are different values."""
    return bool(old == new) and json.dumps(old, default=str, sort_keys=True) == json.dumps(new, default=str, sort_keys=True)


def _plain(value: Any) -> Any:
    """A value for JSON, secrets masked."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, SecretStr):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
