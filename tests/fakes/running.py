"""A whole axiond as a child process, with its manifest file and its admin socket, for tests and benchmarks."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import tomli_w

from axiond.client import AdminClient
from axiond.errors import DaemonUnreachable
from axiond.report import ReloadReport, Status

FAKE = ("-m", "tests.fakes.daemon")
REAL = ("-m", "axiond", "serve")
# sh knows no descriptors of two digits.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.closerange(4, 1024)
os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """*manifest* is what `write()` puts into the file; *log* is what the daemon said."""

    def __init__(self, folder: Path, manifest: dict[str, Any], log_level: str = "info") -> None:
        port = free_port()
        server = {"listen": f"127.0.0.1:{port}", "state_dir": str(folder / "s"), "runtime_dir": str(folder / "r"), "log_level": log_level}
        self.manifest = {**manifest, "server": server | manifest.get("server", {})}
        self.folder, self.path, self.base = folder, folder / "axiond.toml", f"http://127.0.0.1:{port}"
        self.log_path = folder / "log"
        self.process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def write(self) -> None:
        """Replace the file as an editor does."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text(tomli_w.dumps(self.manifest))
        temporary.replace(self.path)

    async def start(self, *command: str, listener: int | None = None, **environ: str) -> None:
        """Start it, as systemd would with *environ* in its environment and *listener* as a socket that was kept for it."""
        hand_over = ("-c", HAND_OVER, str(listener), sys.executable) if listener is not None else ()
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, *hand_over, *command, str(self.path)),
                stdout=log, stderr=log, env={**os.environ, "XDG_STATE_HOME": str(self.folder / "x"), **environ},
                pass_fds=() if listener is None else (listener,),
            )  # fmt: skip

    async def ready(self, within_s: float = 30.0) -> "Running":
        """Wait until it answers and everything is settled."""
        assert self.process
        async with asyncio.timeout(within_s):
            while self.process.returncode is None:
                try:
                    await self.reloaded()
                except DaemonUnreachable:
                    await asyncio.sleep(0.02)
                else:
                    return self
        raise AssertionError(f"axiond ended with {self.process.returncode}:\n{self.log}")

    @property
    def socket(self) -> Path:
        return self.folder / "r" / "admin.sock"

    async def status(self) -> Status:
        async with AdminClient(self.socket) as admin:
            return await admin.status()

    async def reloaded(self, within_s: float = 300.0) -> ReloadReport:
        """Have the file read and wait for the end of it."""
        async with AdminClient(self.socket) as admin:
            return await admin.reload(wait=True, timeout_s=within_s)

    async def settled(self, generation: int = 0, within_s: float = 300.0) -> Status:
        """Wait until this generation was read by itself and nothing is on its way."""
        async with asyncio.timeout(within_s), AdminClient(self.socket) as admin:
            while True:
                status = await admin.status()
                if status.generation >= generation and status.is_settled:
                    return status
                await asyncio.sleep(0.05)

    async def stop(self, number: int = signal.SIGTERM, within_s: float = 60.0) -> int:
        """Signal it and wait for its end; return its exit code."""
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
            async with asyncio.timeout(within_s):
                await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def running(
    folder: Path, manifest: dict[str, Any], *command: str, ready_within_s: float = 30.0, log_level: str = "info"
) -> AsyncIterator[Running]:
    """Run *command* (`FAKE` or `REAL`, more arguments behind it) on *manifest* until the block ends."""
    daemon = Running(folder, manifest, log_level)
    daemon.write()
    await daemon.start(*(command or FAKE))
    try:
        yield await daemon.ready(ready_within_s)
    finally:
        await daemon.stop()


async def chat(http: aiohttp.ClientSession, base: str, model: str, **body: Any) -> tuple[int, dict[str, Any]]:
    """Ask once; return status and body."""
    request = {"model": model, "messages": [{"role": "user", "content": "hi"}], **body}
    async with http.post(f"{base}/v1/chat/completions", json=request) as response:
        return response.status, await response.json()
