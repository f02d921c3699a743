"""
What a proxy in front of an engine costs: axiond's gateway beside nginx, LiteLLM's proxy and a bare aiohttp pass-through.

The proxy has one core, the stub engine and the load share another. Every round visits every proxy; figures are medians
of rounds. How a proxy reaches the stub matters: `aiohttp`, `axiond-tcp` and LiteLLM use TCP, as does the load without a
proxy; `aiohttp-unix`, `axiond` (as it is deployed) and nginx use a Unix socket, which is cheaper and lets chunks merge. So
each is compared with the bare one of its kind, and negative latencies are that difference. The load's core limits nginx
and the runs without a proxy. LiteLLM does not start without a key, so it checks one.

`python bench/gateway.py --litellm --write` makes `bench/results/gateway.md`, on an idle machine.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import aiohttp
import orjson
import psutil
import uvloop
from aiohttp import web
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from http_load import load, request, serve_stub

PORTS = {"direct": 18100, "nginx": 18101, "aiohttp": 18102, "axiond": 18103, "litellm": 18104, "axiond-tcp": 18105, "aiohttp-unix": 18106}
OVER_UNIX = frozenset(("aiohttp-unix", "axiond", "nginx"))
CONNECTIONS = 32
WIDTH = 110
NOTE = (__doc__ or "").split("\n\n")[1]
ROOT = Path(__file__).parents[1]
LITELLM_VENV = ROOT / "build" / "litellm"
PROXY_CORE, LOAD_CORE = "1", "0"
LITELLM_KEY = f"sk-{secrets.token_hex(16)}"  # it does not start without one


async def serve_bare(name: str, folder: Path) -> None:
    """The least an aiohttp proxy can do: read the body, parse it, forward it, with no log, metric or retry."""
    target = f"http://127.0.0.1:{PORTS['direct']}"

    async def forward(asked: web.Request) -> web.StreamResponse:
        body = await asked.read()
        orjson.loads(body)
        async with session.post(target + asked.path, data=body, headers={"Content-Type": "application/json"}) as upstream:
            response = web.StreamResponse(status=upstream.status, headers={"Content-Type": upstream.headers["Content-Type"]})
            await response.prepare(asked)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    is_unix = name.endswith("-unix")
    connector = aiohttp.UnixConnector(str(folder / "stub.sock"), limit=0) if is_unix else aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", PORTS[name]).start()
        await asyncio.Event().wait()


async def serve_axiond(name: str, folder: Path) -> None:
    """The gateway as the daemon runs it: metrics on, one JSON line in the log for each request."""
    from axiond import log  # only this child needs it
    from axiond.engine.engine import Endpoint
    from axiond.gateway.app import serve_rest
    from axiond.gateway.metrics import Metrics
    from axiond.manifest.spec import ModelSpec, Server
    from axiond.reconcile.state import EngineKey
    from axiond.routing.router import Router
    from axiond.routing.table import Pool, RouteTable

    with (folder / f"{name}.log").open("wb") as file:
        log.configure("info", "json", file=file)
        router = Router(lambda: None)
        socket = None if name.endswith("-tcp") else folder / "stub.sock"
        endpoint = Endpoint(EngineKey("m", "d"), "m", f"http://127.0.0.1:{PORTS['direct']}", socket)
        router.publish(RouteTable(1, {"m": Pool("m", ModelSpec(source="/m"), (endpoint,))}, {"m": "m"}))
        async with serve_rest(router, Server(listen=f"127.0.0.1:{PORTS[name]}"), Metrics(router)):
            await asyncio.Event().wait()


def nginx_command(folder: Path) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(f"""
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 1024; }}
http {{
  access_log {folder}/nginx.log; keepalive_requests 1000000;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server unix:{folder}/stub.sock; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{PORTS["nginx"]};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}""")
    return ["nginx", "-c", str(config), "-e", str(folder / "nginx.err")]


def litellm_command(folder: Path) -> list[str]:
    config = folder / "litellm.yaml"
    config.write_text(f"""
model_list:
  - model_name: m
    litellm_params: {{ model: openai/m, api_base: "http://127.0.0.1:{PORTS["direct"]}/v1", api_key: none }}
litellm_settings: {{ telemetry: false, num_retries: 0 }}
""")
    return [
        str(LITELLM_VENV / "bin" / "litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(PORTS["litellm"]),
        "--num_workers",
        "1",
    ]


def install_litellm() -> None:
    if not (LITELLM_VENV / "bin" / "litellm").exists():
        Console(stderr=True).print("installing LiteLLM's proxy into build/litellm ...")
        subprocess.run([sys.executable, "-m", "venv", LITELLM_VENV], check=True)
        subprocess.run([LITELLM_VENV / "bin" / "pip", "install", "-q", "litellm[proxy]"], check=True)


@contextlib.contextmanager
def running(name: str, command: list[str], core: str, folder: Path) -> Iterator[psutil.Process]:
    """A child on one core, ready to answer."""
    environment = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": LITELLM_KEY,
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
    }
    with (folder / f"{name}.out").open("wb") as out:
        child = subprocess.Popen(["taskset", "-c", core, *command], stdout=out, stderr=out, env=environment, cwd=folder)
    try:
        if not asyncio.run(_answers(name, child)):
            raise SystemExit(f"{name} does not answer:\n{(folder / f'{name}.out').read_text()[-2000:]}")
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def payload_for(name: str, is_stream: bool) -> bytes:
    return request(is_stream, "m", LITELLM_KEY if name == "litellm" else "")


async def _answers(name: str, child: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        try:
            result = await load(PORTS[name], payload_for(name, False), False, 1, 0.05)
            if result.took_s and not result.failed:
                return True
        except OSError:
            pass
        await asyncio.sleep(0.2)
    return False


@dataclass
class Figures:
    """Of one proxy in one mode, over all rounds."""

    rates: list[float]
    p50s: list[float]
    p99s: list[float]
    cpu_s: list[float]
    failed: int = 0


def cpu_s(process: psutil.Process) -> float:
    """Processor time of a proxy and its workers so far."""
    return sum(times.user + times.system for times in (each.cpu_times() for each in (process, *process.children(recursive=True))))


def measure(proxies: dict[str, psutil.Process], rounds: int, seconds: float) -> dict[tuple[str, bool], Figures]:
    figures = {(name, is_stream): Figures([], [], [], []) for name in proxies for is_stream in (False, True)}
    for number in range(rounds):
        for (name, is_stream), figure in figures.items():
            Console(stderr=True).print(f"round {number + 1} of {rounds}: {name}{' streaming' if is_stream else ''}", style="dim")
            payload = payload_for(name, is_stream)
            single = uvloop.run(load(PORTS[name], payload, is_stream, 1, seconds))
            before_s = cpu_s(proxies[name])
            many = uvloop.run(load(PORTS[name], payload, is_stream, CONNECTIONS, seconds))
            figure.rates.append(many.rate)
            figure.cpu_s.append((cpu_s(proxies[name]) - before_s) / max(1, many.answered))
            figure.p50s.append(single.p50)
            figure.p99s.append(single.quantile(0.99))
            figure.failed += single.failed + many.failed
    return figures


def rows(figures: dict[tuple[str, bool], Figures]) -> list[dict[str, object]]:
    """One row for each proxy and mode; latency is what it adds to asking the stub directly in the same round."""
    made: list[dict[str, object]] = []
    for (name, is_stream), figure in figures.items():
        direct, bare = figures["direct", is_stream], figures["aiohttp-unix" if name in OVER_UNIX else "aiohttp", is_stream]
        p50 = statistics.median(ours - theirs for ours, theirs in zip(figure.p50s, direct.p50s, strict=True))
        p99 = statistics.median(ours - theirs for ours, theirs in zip(figure.p99s, direct.p99s, strict=True))
        share = statistics.median(ours / theirs for ours, theirs in zip(figure.rates, bare.rates, strict=True))
        made.append({
            "proxy": name, "streaming": is_stream, "added_p50_ms": round(p50 * 1e3, 3), "added_p99_ms": round(p99 * 1e3, 3),
            "requests_per_s": round(statistics.median(figure.rates)), "share_of_bare": round(share, 2),
            "cpu_us_per_request": round(statistics.median(figure.cpu_s) * 1e6), "failed": figure.failed,
        })  # fmt: skip
    return made


def show(made: list[dict[str, object]]) -> Table:
    table = Table(title=f"Proxy on one core; {CONNECTIONS} connections for the rate, one for the latency", title_justify="left")
    for heading in ("proxy", "answers", "added p50 ms", "added p99 ms", "requests/s", "of bare aiohttp", "CPU us/request", "failed"):
        table.add_column(heading, justify="left" if heading in ("proxy", "answers") else "right")
    for row in sorted(made, key=lambda row: bool(row["streaming"])):
        is_direct = row["proxy"] == "direct"
        cells = ["", ""] if is_direct else [str(row["added_p50_ms"]), str(row["added_p99_ms"])]
        table.add_row(
            "(no proxy)" if is_direct else str(row["proxy"]), "50 chunks" if row["streaming"] else "whole", *cells,
            f"{row['requests_per_s']:,}", f"{float(str(row['share_of_bare'])):.0%}", str(row["cpu_us_per_request"]), str(row["failed"]),
        )  # fmt: skip
    return table


def machine() -> dict[str, str]:
    models = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ("aiohttp", "uvloop", "orjson")
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr.strip() if shutil.which("nginx") else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "cpu": f"{len(models)} x {models[0] if models else platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(), **{package: version(package) for package in packages},
        **({"nginx": nginx.rpartition("/")[2]} if nginx else {}), **_litellm_version(),
    }  # fmt: skip


def _litellm_version() -> dict[str, str]:
    found = list(LITELLM_VENV.glob("lib/python3*/site-packages/litellm-*.dist-info"))
    return {"litellm": found[0].name.removeprefix("litellm-").removesuffix(".dist-info")} if found else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--litellm", action="store_true", help="measure LiteLLM's proxy too; installs it into build/")
    parser.add_argument("--only", nargs="+", help="measure only these proxies")
    parser.add_argument("--write", action="store_true", help="write bench/results/gateway.md")
    parser.add_argument("--child", choices=("stub", *PORTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    children: dict[str, Callable[[], object]] = {
        "stub": lambda: serve_stub(PORTS["direct"], str(options.folder / "stub.sock")),
        **{name: lambda: serve_bare(options.child, options.folder) for name in ("aiohttp", "aiohttp-unix")},
        **{name: lambda: serve_axiond(options.child, options.folder) for name in ("axiond", "axiond-tcp")},
    }
    if options.child:
        uvloop.run(children[options.child]())  # type: ignore[arg-type]
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    busy = os.getloadavg()[0]
    if busy > 1 and options.write:
        raise SystemExit(f"load average {busy:.1f}: others use this machine; figures worth keeping need an idle one")
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory(prefix="gw") as name, contextlib.ExitStack() as stack:
        folder = Path(name)

        def child(kind: str) -> list[str]:
            return [sys.executable, str(Path(__file__).absolute()), "--child", kind, "--folder", name]

        proxies = {name: child(name) for name in ("aiohttp", "aiohttp-unix", "axiond-tcp", "axiond")}
        if shutil.which("nginx"):
            proxies["nginx"] = nginx_command(folder)
        else:
            Console(stderr=True).print("nginx is not installed (apt-get install nginx-light): left out")
        if options.litellm:
            install_litellm()
            proxies["litellm"] = litellm_command(folder)
        proxies = {
            kind: command for kind, command in proxies.items() if not options.only or kind in (*options.only, "aiohttp", "aiohttp-unix")
        }
        processes = {"direct": stack.enter_context(running("direct", child("stub"), LOAD_CORE, folder))}
        for kind, command in proxies.items():
            processes[kind] = stack.enter_context(running(kind, command, PROXY_CORE, folder))
        made = rows(measure(processes, options.rounds, options.seconds))
    report(made, options)


def report(made: list[dict[str, object]], options: argparse.Namespace) -> None:
    facts = machine()
    Console(width=WIDTH).print(show(made))
    if options.write:
        text = Console(record=True, width=WIDTH, file=io.StringIO())
        text.print(show(made))
        lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
        target = ROOT / "bench" / "results" / "gateway.md"
        target.write_text(
            f"# Gateway\n\n{NOTE}\n\n```\n{text.export_text()}```\n\n{lines}\n- rounds: {options.rounds} of {options.seconds:g} s each\n"
        )
    print(json.dumps({"bench": "gateway", **facts, "rows": made}))


if __name__ == "__main__":
    main()
