import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel, TypeAdapter

from axiond.manifest.load import load, parse
from axiond.manifest.routes import Auto, Canary, Domain, Match, Refusal, Route, Semantic, Shadow, SystemPrompt, Weighted
from axiond.manifest.spec import ChunkedPrefill, GoldenPrompt, Kernels, ModelSpec, Server, change_of
from axiond.semantic.index import build_index

ETC = Path(__file__).parents[2] / "etc/axiond"
LONGEST_SOCKET_NAME_BYTES = 107
EXPLAINED = re.compile(r"^(?:# )?(\w+) = .*?(?:# \((live|engine|daemon)\).*)?$", re.MULTILINE)


@pytest.mark.parametrize("name", ["quickstart.toml", "axiond.toml"])
def test_it_is_a_good_manifest(name: str) -> None:
    assert set(load(ETC / name, {}).manifest.models) == {"smollm2"}


def test_the_quickstart_needs_no_root() -> None:
    server = load(ETC / "quickstart.toml", {}).manifest.server
    assert server.state_dir.resolve() == ETC.parents[1] / "var/state"
    assert len(str(server.runtime_dir / "smollm2@0123456789ab#63" / "engine.sock")) < LONGEST_SOCKET_NAME_BYTES


TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "server": (Server,),
    "defaults": (ModelSpec,),
    "models.smollm2": (ModelSpec,),
    "models.smollm2.chunked_prefill": (ChunkedPrefill,),
    "models.smollm2.golden": (GoldenPrompt,),
    "models.smollm2.kernels": (Kernels,),
    "routes": (Route,),
    "routes.when": (Match,),
    "routes.canary": (Canary,),
    "routes.shadow": (Shadow,),
    "routes.system_prompt": (SystemPrompt,),
    "routes.refuse": (Refusal,),
    "domains.code": (Domain,),
    "semantic": (Semantic,),
    "auto": (Auto,),
}


def explained() -> Iterator[tuple[type[BaseModel], str, str, str]]:
    """Table, field, the class that is said of it, "" where none is, and the line, for all of the manifest that is installed."""
    tables: tuple[type[BaseModel], ...] = ()
    for line in (ETC / "axiond.toml").read_text().splitlines():
        if header := re.match(r"(?:# )?\[+([\w.]+)\]", line):
            tables = TABLES.get(header[1], ())
            around, _, name = header[1].rpartition(".")
            yield from ((table, name, "", line) for table in TABLES.get(around, ()))
        elif found := EXPLAINED.match(line):
            yield from ((table, found[1], found[2] or "", line) for table in tables)
            yield from ((Weighted, name, "", line) for name in re.findall(r"[{,] (\w+) = ", line) if found[1] == "models")


@pytest.mark.parametrize("table", [*dict.fromkeys(table for tables in TABLES.values() for table in tables), Weighted])
def test_every_field_is_explained(table: type[BaseModel]) -> None:
    """The manifest that is installed shows every field in its table, and tells the truth about what a change to it costs."""
    said = [(name, change) for of, name, change, _ in explained() if of is table]
    assert {name for name, _ in said} == set(table.model_fields)
    assert {(name, change) for name, change in said if change} <= {(name, change_of(table, name)) for name in table.model_fields}


def test_what_is_said_to_be_the_default_is() -> None:
    """Where a line ends so; the default of admin_socket is made of another field."""
    lines = [(table, name, line) for table, name, _, line in explained() if re.search(r"(; |, |\) |# )the default$", line)]
    assert len(lines) > 15
    for table, name, line in lines:
        kind = TypeAdapter[Any](get_type_hints(table, include_extras=True)[name])
        value = kind.validate_python(tomllib.loads(line.removeprefix("# "))[name])
        assert value == table.model_fields[name].default or name == "admin_socket", line


def test_what_is_commented_out_is_right() -> None:
    """Uncommented all at once, it is a good manifest still."""
    text = re.sub(r"^# (?=\w+ = |\[)", "", (ETC / "axiond.toml").read_text(), flags=re.MULTILINE)
    text = re.sub(r"\$\{file:.*/(.*)\.?key\}", r"\1secret", text) + '[models.other]\nsource = "/srv/other"\n'
    manifest = parse(text.encode(), ETC / "axiond.toml", {}).manifest
    assert manifest.models["smollm2"].engine_args == {"seed": 7}
    assert [route.name for route in manifest.routes] == ["no-uploads", "code", "assistant", "best", "stable", "watched"]
    assert manifest.domains.keys() == {"code"}


@pytest.mark.parametrize(
    "prompt",
    [
        "¿Qué significa este aviso en la pantalla?",
        "¿Qué quiere decir «periodo de carencia» aquí?",
        "Responde en formato de tabla.",
        "Contesta en una sola frase: ¿llueve?",
        "Corrige mi ensayo sobre Goya.",
        "Escribe un mensaje a mi jefe: llego tarde.",
        "¿Cuál es el plazo para apuntarse al torneo?",
        "Mi coche va lento en las cuestas.",
    ],
)
def test_words_of_any_prompt_are_no_keywords(prompt: str) -> None:
    """What the keywords are sure of is not looked at by the embedding model any more."""
    manifest = load(ETC / "routing.toml", {}).manifest
    assert build_index(manifest.domains, manifest.semantic, None).by_keywords(prompt).domain == ""
