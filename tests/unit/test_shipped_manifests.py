import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from axiond.manifest.load import load, parse
from axiond.manifest.spec import ChunkedPrefill, GoldenPrompt, Kernels, ModelSpec, Route, Server, change_of

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


@pytest.mark.parametrize("table", [Server, ModelSpec, ChunkedPrefill, Kernels, GoldenPrompt, Route])
def test_every_field_is_explained(table: type[BaseModel]) -> None:
    """The manifest that is installed shows every field, and tells the truth about what a change to it costs."""
    text = (ETC / "axiond.toml").read_text()
    shown = dict(EXPLAINED.findall(text)) | dict.fromkeys(re.findall(r"\[models\.smollm2\.(\w+)\]", text), "")
    assert set(table.model_fields) - shown.keys() == set()
    assert {name: shown[name] for name in table.model_fields if shown[name]} == {
        name: change_of(table, name) for name in table.model_fields if shown[name]
    }


def test_what_is_commented_out_is_right() -> None:
    """Uncommented all at once, it is a good manifest still."""
    text = re.sub(r"^# (?=\w+ = |\[)", "", (ETC / "axiond.toml").read_text(), flags=re.MULTILINE)
    text = text.replace("${file:/etc/axiond/key}", "secret") + '[models.other]\nsource = "/srv/other"\n'
    manifest = parse(text.encode(), ETC / "axiond.toml", {}).manifest
    assert manifest.models["smollm2"].engine_args == {"seed": 7}
    assert [route.name for route in manifest.routes] == ["assistant"]
