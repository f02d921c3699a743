"""`axiond route`: what would become of a request."""

from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from pydantic_core import PydanticSerializationError

from axiond.client import AdminClient
from axiond.errors import AxiondError, DaemonUnreachable
from axiond.manifest.load import load
from axiond.options import DEFAULT_MANIFEST, OF_DAEMON, OK, Json, Socket, find_socket, read, run
from axiond.render import route_view
from axiond.routereport import RouteQuestion
from axiond.terminal import complain, put

_OF_REQUEST: Final = "The request"
Manifest = Annotated[
    Path,
    typer.Option(
        "--manifest",
        envvar="AXIOND_MANIFEST",
        rich_help_panel=OF_DAEMON,
        help="The daemon's manifest: its admin socket is found there; without a daemon it decides alone.",
    ),
]

app = typer.Typer(help="Say what would become of a request.", no_args_is_help=True)


@app.command(name="explain")
def explain_route(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the user says.")] = "",
    model: Annotated[str, typer.Option(metavar="NAME", rich_help_panel=_OF_REQUEST, help="The model asked for; auto if unset.")] = "",
    path: Annotated[str, typer.Option(metavar="PATH", rich_help_panel=_OF_REQUEST, help="The API's path.")] = "/v1/chat/completions",
    header: Annotated[list[str] | None, typer.Option(metavar="'NAME: VALUE'", rich_help_panel=_OF_REQUEST, help="A header.")] = None,
    key_group: Annotated[str, typer.Option(metavar="NAME", rich_help_panel=_OF_REQUEST, help="The API key's group.")] = "",
    stream: Annotated[bool, typer.Option("--stream", rich_help_panel=_OF_REQUEST, help="The answer is asked for as a stream.")] = False,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_OF_REQUEST, help="The request's body in JSON, instead; - is standard input."),
    ] = None,
    manifest: Manifest = DEFAULT_MANIFEST,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """
    Show every rule tried for a request and why it matched or not, what the prompt is about, scores, and timing.

    Nothing is generated, loaded or counted. Without a daemon, the manifest alone decides: how long models take is not known then.

    Example: axiond route explain "How do I sort a list in Python?"
    """
    asked = RouteQuestion(path=path, headers=_headers(header or ()), key_group=key_group, **_said(prompt, model, stream, file))
    try:
        asked.model_dump_json()
    except PydanticSerializationError as exc:
        raise AxiondError(f"this is no request that could be sent: {exc}") from exc
    raise typer.Exit(run(_explain(asked, manifest, find_socket(socket, manifest), as_json)))


async def _explain(asked: RouteQuestion, manifest: Path, socket: Path, as_json: bool) -> int:
    try:
        async with AdminClient(socket) as admin:
            found = await admin.explain(asked)
    except DaemonUnreachable as exc:
        from axiond.alone import explain_alone  # a quarter of a second of imports that no other command needs

        found = await explain_alone(load(manifest).manifest, asked)
        complain(f"{exc}; {manifest} alone decides, and how long models take is not known:")
    put(found if as_json else route_view(found))
    return OK


def _said(prompt: str, model: str, stream: bool, file: Path | None) -> dict[str, Any]:
    if file is None:
        return {"prompt": prompt, "model": model or "auto", "stream": stream}
    if prompt or model or stream:
        raise typer.BadParameter("is a whole request; give no prompt, --model or --stream beside it", param_hint="--file")
    text = typer.get_binary_stream("stdin").read() if str(file) == "-" else read(file)
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise AxiondError(f"{file} is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise AxiondError(f"{file} is not a request: a JSON object with `model` and `messages` or `prompt`")
    return {"body": body}


def _headers(written: list[str] | tuple[()]) -> dict[str, str]:
    headers = {}
    for header in written:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise typer.BadParameter(f'"{header}" is not written like "X-Team: blue"', param_hint="--header")
        headers[name.strip()] = value.strip()
    return headers
