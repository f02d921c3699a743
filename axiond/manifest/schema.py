"""The JSON Schema of a manifest file as a user writes it, for editors and for the reference."""

from collections.abc import Iterator
from typing import Any

from axiond.manifest.fields import CHANGE_KEY, Change
from axiond.manifest.spec import Manifest

REFERENCE = {"type": "string", "pattern": r"\$\{", "description": "${NAME} or ${file:PATH}"}
ANNOTATIONS = ("description", "default", CHANGE_KEY)


def json_schema() -> dict[str, Any]:
    """Every field that is no table says under `x-axiond-change` what a change to it costs."""
    schema = Manifest.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    for table in (schema, *definitions.values()):
        table.pop("title", None)
        table["properties"] = {name: _table(field) if _is_table(field) else _leaf(field) for name, field in table["properties"].items()}
    del definitions["GoldenPrompt"]["required"]  # a model and the defaults may each bring a part of it
    definitions["Defaults"] = {**definitions["ModelSpec"], "required": []}
    schema["properties"] |= {
        "defaults": {"$ref": "#/$defs/Defaults", "description": "Merged into every model; what a model says itself wins."},
        "include": _own(
            "More files of the same form, relative to this one; patterns may match nothing.", {"type": "array", "items": {"type": "string"}}
        ),
        "$schema": _own("Where this schema is, for editors; axiond does not read it.", {"type": "string"}),
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "axiond manifest", **schema}


def leaves(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and schema of every field that is no table, as `ModelSpec.source`."""
    for table, definition in {"Manifest": schema, **schema["$defs"]}.items():
        yield from ((f"{table}.{name}", field) for name, field in definition["properties"].items() if not _is_table(field))


def _own(description: str, field: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, CHANGE_KEY: Change.LIVE.value, **field}


def _is_table(field: dict[str, Any]) -> bool:
    """Whether its fields carry the change classes: a table, or a table or list of tables."""
    return CHANGE_KEY not in field and any(
        "$ref" in part for part in (field, field.get("additionalProperties", {}), field.get("items", {}))
    )


def _table(field: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in field.items() if key not in ("title", "default")}


def _leaf(field: dict[str, Any]) -> dict[str, Any]:
    """Drop what only Python needs, and allow a reference where the value itself is no free text."""
    field = {key: value for key, value in field.items() if key not in ("title", "ge")} | _minimum(field)
    annotations = {key: field.pop(key) for key in ANNOTATIONS if key in field}
    alternatives = field.pop("anyOf", [field] if field else [])
    alternatives = [_list_of_references(part) for part in alternatives]
    if not any(_is_free_text(part) or _is_container(part) for part in alternatives):
        alternatives = [*alternatives, REFERENCE]
    return {**annotations, **(alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives})}


def _list_of_references(part: dict[str, Any]) -> dict[str, Any]:
    """Items of a list may be references as well."""
    item = part.get("items", {})
    return {**part, "items": {"anyOf": [item, REFERENCE]}} if item.get("type") == "string" and not _is_free_text(item) else part


def _minimum(field: dict[str, Any]) -> dict[str, Any]:
    """Pydantic leaves the smallest size of a ByteSize beside its alternatives, where JSON Schema knows none."""
    if "ge" not in field:
        return {}
    return {"anyOf": [{**part, "minimum": field["ge"]} if part["type"] == "integer" else part for part in field["anyOf"]]}


def _is_container(part: dict[str, Any]) -> bool:
    return part.get("type") in ("array", "object") or "$ref" in part


def _is_free_text(part: dict[str, Any]) -> bool:
    return part.get("type") == "string" and not part.keys() & {"enum", "pattern"}
