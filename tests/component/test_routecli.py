"""`axiond route explain` against a real HTTP server on a real Unix socket, and alone."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from axiond import cli
from axiond.routereport import RouteExplanation
from tests.component.test_cli import FakeDaemon, axiond, daemon
from tests.fakes.reports import explained

__all__ = ["daemon"]

MANIFEST = """
[models.small]
source = "/m"
[models.big]
source = "/m"
fit = {code = 1.0}
[domains.code]
keywords = ["python", "javascript"]
[[routes]]
name = "team"
when = {headers = {x-team = "^blue$"}, stream = true}
models = ["small"]
"""


async def answer(request: web.Request) -> web.Response:
    return web.Response(text=explained().model_dump_json(), content_type="application/json")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["How?"], {"model": "auto", "prompt": "How?"}),
        (
            ["How?", "--model=m", "--path=/v1/completions", "--header=X-Team: a: b", "--header=y:", "--key-group=g", "--stream"],
            {"model": "m", "prompt": "How?", "path": "/v1/completions", "headers": {"X-Team": "a: b", "y": ""}, "key_group": "g",
             "stream": True},
        ),
        (["--file", "request.json"], {"body": {"model": "m", "messages": []}}),
    ],
    ids=["prompt", "options", "file"],
)  # fmt: skip
async def test_the_daemon_is_asked(daemon: FakeDaemon, arguments: list[str], asked: dict[str, Any]) -> None:
    daemon.answer = answer
    request = daemon.folder / "request.json"
    request.write_text('{"model": "m", "messages": []}')
    arguments = [str(request) if word == "request.json" else word for word in arguments]
    outcome = await axiond("route", "explain", *arguments, "--socket", str(daemon.socket))
    assert (outcome.code, outcome.err) == (0, "")
    ((method, path, body),) = daemon.requests
    assert (method, path) == ("POST", "/admin/v1/route:explain")
    given = {name: value for name, value in json.loads(body).items() if value}
    assert given == {"path": "/v1/chat/completions"} | asked
    assert "code (0.61 embedding)" in outcome.out


async def test_json_is_what_the_daemon_said(daemon: FakeDaemon) -> None:
    daemon.answer = answer
    outcome = await axiond("route", "explain", "x", "--socket", str(daemon.socket), "--json")
    assert RouteExplanation.model_validate_json(outcome.out) == explained()


async def test_without_a_daemon_the_manifest_decides_and_says_so(tmp_path: Path) -> None:
    manifest = tmp_path / "axiond.toml"
    manifest.write_text(MANIFEST)
    common = ("--manifest", str(manifest), "--socket", str(tmp_path / "none"))
    told, routed = await asyncio.gather(
        axiond("route", "explain", "Translate this javascript to python", *common),
        axiond("route", "explain", "x", "--header", "x-team: blue", "--stream", "--json", *common),
    )
    assert told.code == 0
    assert "no daemon answers" in told.err
    assert "how long models take is not known" in told.err
    assert "by the manifest alone" in told.out
    assert "code (keyword)" in told.out
    found = RouteExplanation.model_validate_json(routed.out)
    assert (found.generation, found.route, found.models) == (0, "team", ("small",))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--file", "{folder}/none.json"], "none.json: No such file"),
        (["--file", "{folder}/broken.json"], "broken.json is not JSON"),
        (["--file", "{folder}/list.json"], "list.json is not a request"),
        (["--file", "{folder}/list.json", "x"], "whole request"),
        (["--file", "{folder}/deep.json"], "no request that could be sent"),
        (["a\udcffb"], "no request that could be sent"),
        (["x", "--header", "X-Team"], 'written like "X-Team: blue"'),
        (["x", "--path", "/v2/nothing"], "No model answers on /v2/nothing"),
        (["x", "--manifest", "{folder}/broken.json"], "broken.json:1:"),
    ],
    ids=["no-file", "no-json", "no-object", "two-requests", "too-deep", "no-text", "no-header", "no-path", "no-manifest"],
)
def test_bad_input_is_told(
    tmp_path: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "axiond.toml").write_text(MANIFEST)
    (tmp_path / "broken.json").write_text('{"model": ')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text('{"a": ' * 500 + "1" + "}" * 500)
    written = [word.format(folder=tmp_path) for word in arguments]
    more = [] if "--manifest" in written else ["--manifest", str(tmp_path / "axiond.toml")]
    monkeypatch.setattr("sys.argv", ["axiond", "route", "explain", *written, *more, "--socket", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    out, err = capsys.readouterr()
    assert says in err
    assert out == ""
