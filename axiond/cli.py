"""The command line: arguments to exit code, one small function per subcommand."""

import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, cast

import orjson
import typer
from rich.console import RenderableType
from rich.live import Live

from axiond import __version__, routecli
from axiond.client import AdminClient
from axiond.cpumap import cpus_report
from axiond.engine.check import check_engine_args
from axiond.errors import AxiondError, DaemonRefused, DaemonUnreachable, DomainsError, ManifestError, Place, Problem
from axiond.manifest.load import Loaded, load
from axiond.manifest.schema import json_schema
from axiond.manifest.spec import Manifest as ManifestSpec
from axiond.manifest.store import LastGood, state_folder
from axiond.options import CHANGES, DEFAULT_MANIFEST, FAILED, OK, Json, Manifest, ManifestOption, Socket, find_socket, read, run
from axiond.reconcile.preview import preview
from axiond.reconcile.state import Observed
from axiond.render import cpus_view, event_line, exit_code, plan_view, status_view
from axiond.report import PlanReport, Status
from axiond.resources import fit
from axiond.resources.budget import read_room
from axiond.resources.fit import empty_budget_bytes, expectations
from axiond.resources.measured import MeasuredStore
from axiond.resources.topology import read_topology
from axiond.semantic.check import check_encoder
from axiond.terminal import complain, console, counted, put, put_line

_REFRESH_S: Final = 1.0
# typer does not export the class of wrong usage, only this child of it.
_UsageError: Final = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])

app = typer.Typer(
    help="Serve many language models on one CPU server: one manifest, hot reload, nothing dropped.\n\n"
    "Start with [bold]axiond check[/bold], then [bold]axiond serve[/bold]; edit the manifest at any time.",
    epilog="Exit codes: 0 all is well or nothing to do, 1 error, 2 changes (plan) or not all is well (status).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(routecli.app, name="route", rich_help_panel="Look")


def main() -> None:
    """Entry point. Wrong usage exits 1, so that 2 always means what the commands say."""
    try:
        code = app(prog_name="axiond", standalone_mode=False)
    except _UsageError as exc:
        exc.show()
        code = FAILED
    except AxiondError as exc:
        complain(str(exc))
        code = FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _axiond(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"axiond {__version__}")
        raise typer.Exit


@app.command(rich_help_panel="Serve")
def serve(
    manifest: Manifest = DEFAULT_MANIFEST,
    as_json: Annotated[bool, typer.Option("--json", help="Log JSON lines, also on a terminal.")] = False,
) -> None:
    """
    Run the daemon in the foreground until SIGTERM.

    It keeps the engines as the manifest says, follows every change of the file (SIGHUP: look now), and answers the OpenAI API.

    Example: axiond serve etc/axiond/quickstart.toml
    """
    from axiond import daemon  # half a second of imports that no other command needs

    raise typer.Exit(daemon.run(manifest, daemon.Settings(log_format="json" if as_json else None)))


@app.command(rich_help_panel="Change")
def check(
    manifest: Manifest = DEFAULT_MANIFEST,
    engine: Annotated[bool, typer.Option("--engine", help="Ask vLLM's own argument parser too (ten seconds).")] = False,
    as_json: Json = False,
) -> None:
    """
    Find everything wrong with a manifest: file, line and column, field, what is wrong, what would be right.

    Needs no daemon, loads no model. Exit code 0: it is good. 1: it is not.

    Example: axiond check --engine etc/axiond/quickstart.toml
    """
    problems: Sequence[Problem] = ()
    try:
        loaded = _load(manifest)
        if engine:
            problems = asyncio.run(_check_engines(manifest, loaded.manifest))
        if lack := fit.problem(loaded.manifest):
            problems = (*problems, Problem(Place(str(manifest), field="models"), lack))
    except ManifestError as exc:
        problems = exc.problems
    if as_json:
        typer.echo(orjson.dumps({"problems": problems}, option=orjson.OPT_INDENT_2))
    elif problems:
        sys.stderr.write("".join(f"{problem}\n" for problem in problems) + f"{counted(len(problems), 'problem')}.\n")
    else:
        counts = ", ".join(
            counted(len(found), word) for found, word in ((loaded.manifest.models, "model"), (loaded.manifest.routes, "route"))
        )
        put(f"{manifest} is good: {counts}.")
    raise typer.Exit(FAILED if problems else OK)


@app.command(rich_help_panel="Change")
def plan(manifest: Manifest = DEFAULT_MANIFEST, socket: Socket = None, as_json: Json = False) -> None:
    """
    Show what a manifest would do, without doing it.

    Per model the verdict and the fields responsible. Strategy surge starts the new engine beside the old; stop-first has no room for both.

    Of the latest requests, which share would move from which model to which other one; no text of them is kept for that.

    Without a daemon, the manifest is compared with what was last served from it, if anything was.

    Exit code 0: nothing to do. 2: changes. 1: error.

    Example: cp /etc/axiond/axiond.toml new.toml; vi new.toml; axiond plan new.toml
    """
    raise typer.Exit(run(_plan(manifest, find_socket(socket, manifest), as_json)))


@app.command(rich_help_panel="Change")
def reload(
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the change is realised or refused.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Longest wait.")] = 600.0,
    manifest: ManifestOption = DEFAULT_MANIFEST,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """
    Have the daemon read its manifest again, now.

    If it is refused or rolled back, the last good generation keeps serving, and the reason is on standard error.

    Exit code 0: the new generation is served (with --no-wait: accepted). 1: it is not.

    Example: axiond reload --timeout 1200
    """
    raise typer.Exit(run(_reload(find_socket(socket, manifest), wait, timeout_s, as_json)))


@app.command(rich_help_panel="Look")
def schema(_as_json: Annotated[bool, typer.Option("--json", help="Print JSON, which it does anyway.")] = False) -> None:
    """
    Print the manifest's JSON Schema; x-axiond-change says of every field what a change costs.

    live: takes effect at once. engine: that model's engines are replaced. daemon: axiond has to restart.

    Example: axiond schema > axiond.schema.json
    """
    typer.echo(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2))


@app.command(rich_help_panel="Look")
def status(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model, and which kernels its engines run.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing, until Ctrl-C.")] = False,
    manifest: ManifestOption = DEFAULT_MANIFEST,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """
    Show generation, conditions, models and engines; of one model, the kernels too.

    Exit code 0: the newest manifest is served in full. 2: not yet, degraded, or rolled back. 1: the daemon cannot be reached.

    Example: axiond status --json | jq '.engines[] | {key, state, memory_bytes}'
    """
    found = find_socket(socket, manifest)
    raise typer.Exit(run(_watch(found, model, as_json) if watch else _status(found, model, as_json)))


@app.command(rich_help_panel="Look")
def cpus(manifest: ManifestOption = DEFAULT_MANIFEST, socket: Socket = None, as_json: Json = False) -> None:
    """
    Show the machine's cores: memory node, kind, and who runs there. Neighbours alike are one line.

    Without a daemon, the machine alone.

    Example: axiond cpus --json | jq '.cores[] | select(.compute == [])'
    """
    raise typer.Exit(run(_cpus(find_socket(socket, manifest), as_json)))


@app.command(rich_help_panel="Look")
def events(manifest: ManifestOption = DEFAULT_MANIFEST, socket: Socket = None, as_json: Json = False) -> None:
    """
    Follow what happens, one line per event.

    Example: axiond events --json | jq 'select(.name == "engine.changed_state")'
    """
    raise typer.Exit(run(_events(find_socket(socket, manifest), as_json)))


def _load(manifest: Path) -> Loaded:
    """Raises ManifestError, also for an embedding model that is missing."""
    loaded = load(manifest)
    try:
        check_encoder(loaded.manifest)
    except DomainsError as exc:
        raise loaded.refusal(exc.at, exc.problem, exc.remedy) from exc
    return loaded


async def _check_engines(manifest: Path, loaded: ManifestSpec) -> Sequence[Problem]:
    found = await check_engine_args(loaded.models)
    return [Problem(Place(str(manifest), field=f"models.{name}"), f"vLLM refuses it: {what}") for name, what in found.items()]


async def _plan(manifest: Path, socket: Path, as_json: bool) -> int:
    try:
        async with AdminClient(socket) as admin:
            report = await _plan_of(admin, manifest)
    except DaemonUnreachable as exc:
        words, report = _plan_alone(manifest)
        complain(f"{exc}; {words}:")
    put(report if as_json else plan_view(report))
    if report.memory and report.memory.problem:
        complain(f"it would be rejected: {report.memory.problem}")
        return FAILED
    return OK if report.is_empty else CHANGES


async def _plan_of(admin: AdminClient, manifest: Path) -> PlanReport:
    """Ask the daemon. It reads what it is given as if that stood in its own manifest; what is wrong is told of the file that was given."""
    kind = "json" if manifest.suffix == ".json" else "toml"
    text = read(manifest)
    try:
        return await admin.plan(text, f"application/{kind}")
    except DaemonRefused as exc:
        if not exc.problems:
            raise
        theirs = str(Path((await admin.status()).manifest).with_suffix(f".{kind}"))
        raise DaemonRefused(exc.status, exc.message, [_renamed(problem, theirs, str(manifest)) for problem in exc.problems]) from None


def _renamed(problem: Problem, old: str, new: str) -> Problem:
    place = replace(problem.place, file=new) if problem.place.file == old else problem.place
    return replace(problem, place=place, what=problem.what.replace(f", at {old}:", f", at {new}:"))


def _plan_alone(manifest: Path) -> tuple[str, PlanReport]:
    candidate = _load(manifest).manifest
    expected = expectations(candidate, MeasuredStore(candidate.server.state_dir))
    observed = Observed(budget_bytes=empty_budget_bytes(candidate.server.memory_budget, read_room()))
    stored, _ = LastGood(state_folder(), manifest.absolute()).load()
    if stored:
        report = preview(stored.generation + 1, stored.manifest, candidate, observed, expected)
        return f"compared with generation {stored.generation}, the last good one", report
    return "this is what a first start would do", preview(1, ManifestSpec(), candidate, observed, expected)


async def _reload(socket: Path, wait: bool, timeout_s: float, as_json: bool) -> int:
    async with AdminClient(socket) as admin:
        report = await admin.reload(wait=wait, timeout_s=timeout_s)
    is_good = report.is_realised if wait else report.is_accepted
    if as_json:
        put(report)
    elif is_good:
        put(f"generation {report.generation} {'is served' if report.is_realised else 'was accepted'}.")
    else:
        gap = "\n" if "\n" in report.message else " "
        complain(f"generation {report.generation} {'was not realised' if report.is_accepted else 'was rejected'}:{gap}{report.message}")
    return OK if is_good else FAILED


async def _status(socket: Path, model: str | None, as_json: bool) -> int:
    async with AdminClient(socket) as admin:
        report = _only(await admin.status(), model)
    put(report if as_json else _view(report, model))
    return exit_code(report)


async def _cpus(socket: Path, as_json: bool) -> int:
    try:
        async with AdminClient(socket) as admin:
            report = await admin.cpus()
    except DaemonUnreachable as exc:
        complain(f"{exc}; this is the machine alone:")
        report = cpus_report(read_topology())
    put(report if as_json else cpus_view(report))
    return OK


async def _watch(socket: Path, model: str | None, as_json: bool) -> int:
    """Ask again after every event, and every second for the durations."""
    wake = asyncio.Event()

    async def listen(admin: AdminClient) -> None:
        async for _ in admin.events():
            wake.set()
        raise DaemonUnreachable(str(socket), "it ended the stream of events")

    async def show(admin: AdminClient, live: Live) -> None:
        while True:
            report = _only(await admin.status(), model)
            if as_json:
                put_line(report)
            else:
                live.update(_view(report, model), refresh=True)
            await _first_of(wake, _REFRESH_S)
            wake.clear()

    async with AdminClient(socket) as admin:
        with Live(console=console(), auto_refresh=False, screen=sys.stdout.isatty() and not as_json) as live:
            await _all(listen(admin), show(admin, live))
    return OK


async def _events(socket: Path, as_json: bool) -> int:
    async with AdminClient(socket) as admin:
        async for event in admin.events():
            if as_json:
                put_line(event)
            else:
                put(event_line(event))
    raise DaemonUnreachable(str(socket), "it ended the stream of events")


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    """Run until the first error, and raise that one error bare."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except* AxiondError as group_error:
        raise group_error.exceptions[0] from None


async def _first_of(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


def _only(report: Status, model: str | None) -> Status:
    names = {found.name for found in report.models} | {found.model for found in report.engines}
    if model is not None and model not in names:
        raise AxiondError(f'there is no model "{model}"; there are {", ".join(sorted(names))}' if names else "there are no models")
    return report if model is None else report.only(model)


def _view(report: Status, model: str | None) -> RenderableType:
    return status_view(report, datetime.now(UTC), with_kernels=model is not None)
