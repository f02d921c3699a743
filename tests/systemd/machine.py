"""A real systemd in a container: a Debian root folder, booted with systemd-nspawn."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,make,g++,ca-certificates,curl,procps,libnuma1"
REPOSITORY = Path(__file__).parents[2]
BOOT_TIMEOUT_S = 60


class Failed(Exception):
    """A command ended otherwise than it had to."""


@dataclass(frozen=True)
class Result:
    code: int
    output: str


@dataclass
class Machine:
    """A booted container. Commands run inside and are written down in *transcript*."""

    init_pid: int
    environ: Mapping[str, str]
    transcript: TextIO

    def say(self, text: str) -> None:
        for file in (self.transcript, sys.stdout):
            print(text, file=file, flush=True)

    def run(self, command: str, *, codes: tuple[int, ...] = (0,), timeout_s: float = 120, is_quiet: bool = False) -> Result:
        """Run a shell command inside; raise Failed unless its exit code is among *codes*."""
        if not is_quiet:
            self.say(f"$ {command}")
        began = time.monotonic()
        inside = ["nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "-C", "env", "-i", *self._assignments()]
        done = subprocess.run(
            [*inside, "bash", "-o", "pipefail", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        if not is_quiet:
            shown = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
            self.say(f"{shown}\n[exit {done.returncode}, {time.monotonic() - began:.1f} s]\n".lstrip("\n"))
        if done.returncode not in codes:
            raise Failed(f"{command}\nended with {done.returncode}, wanted {codes}\n{done.stdout}")
        return Result(done.returncode, done.stdout)

    def _assignments(self) -> Iterator[str]:
        here = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root", "LANG": "C.UTF-8", "COLUMNS": "140"}
        # The source is mounted to be read only.
        here["SKBUILD_BUILD_DIR"] = "/root/build"
        return (f"{name}={value}" for name, value in {**here, **self.environ}.items())


def make_root(root: Path) -> None:
    """Debian with systemd and what a newcomer has, once; later runs find it there."""
    if (root / "usr/lib/systemd/systemd").exists():
        return
    for tool in ("debootstrap", "systemd-nspawn"):
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is missing: apt-get install debootstrap systemd-container")
    unfinished = root.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", unfinished], check=True, timeout=1800)
    unfinished.rename(root)


@contextmanager
def booted(root: Path, transcript: TextIO) -> Iterator[Machine]:
    """The root, running; powered off at the end, whatever happens."""
    settings, folders = pip_settings()
    binds = [f"--bind-ro={folder}" for folder in folders]
    command = ["systemd-nspawn", "-q", "-D", str(root), "-b", "--register=no", "--keep-unit", f"--bind-ro={REPOSITORY}:/src", *binds]
    with (root.parent / "console.log").open("w") as console:
        nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
        try:
            machine = Machine(_init_of(nspawn.pid), settings, transcript)
            _wait_until_up(machine)
            yield machine
        finally:
            nspawn.terminate()  # asks the container to power off
            try:
                nspawn.wait(60)
            except subprocess.TimeoutExpired:
                nspawn.kill()
                nspawn.wait()


def pip_settings() -> tuple[dict[str, str], set[Path]]:
    """This machine's pip settings as variables, and the local folders that they name, for use inside."""
    listing = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True, timeout=60)
    settings: dict[str, str] = {}
    for line in listing.splitlines():
        name, value = line.split("=", 1)
        settings["PIP_" + name.split(".", 1)[1].lstrip(".").upper().replace("-", "_")] = shlex.split(value)[0]
    settings |= {name: value for name, value in os.environ.items() if name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "https_proxy")}
    return settings, {folder for value in settings.values() for word in value.split() if (folder := _local_folder(word))}


def _local_folder(word: str) -> Path | None:
    """A file: index keeps its files beside itself, so the folder above it is needed."""
    path = Path(word.removeprefix("file://"))
    if word.startswith("file://"):
        return path.parent
    if not path.is_absolute() or not path.exists():
        return None
    return path if path.is_dir() else path.parent


def _init_of(nspawn_pid: int) -> int:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        children = Path(f"/proc/{nspawn_pid}/task/{nspawn_pid}/children").read_text().split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        time.sleep(0.1)
    raise Failed("the container did not start; see console.log beside its root")


def _wait_until_up(machine: Machine) -> None:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    state = ""
    while state not in ("running", "degraded"):
        if time.monotonic() > deadline:
            raise Failed(f"systemd did not come up, it is {state!r}; see console.log beside its root")
        state = machine.run("systemctl is-system-running --wait || sleep 0.2", is_quiet=True).output.strip()
