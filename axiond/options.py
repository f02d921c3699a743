"""What the subcommands share: options, exit codes, and how the daemon is found."""

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from axiond.errors import AxiondError, DaemonUnreachable
from axiond.manifest.files import Files
from axiond.manifest.gather import gather
from axiond.manifest.merge import merge
from axiond.terminal import complain

DEFAULT_MANIFEST: Final = Path("/etc/axiond/axiond.toml")
DEFAULT_SOCKET: Final = Path("/run/axiond/admin.sock")
OK, FAILED, CHANGES = 0, 1, 2

OF_DAEMON: Final = "The daemon"
Manifest = Annotated[Path, typer.Argument(envvar="AXIOND_MANIFEST", help="The manifest, TOML or JSON.")]
ManifestOption = Annotated[
    Path,
    typer.Option(
        "--manifest",
        envvar="AXIOND_MANIFEST",
        rich_help_panel=OF_DAEMON,
        help="The daemon's manifest, read only to find its admin socket.",
    ),
]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        envvar="AXIOND_ADMIN_SOCKET",
        rich_help_panel=OF_DAEMON,
        help="The daemon's admin socket; found through the manifest if unset.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a subcommand to its exit code."""
    try:
        return asyncio.run(work)
    except DaemonUnreachable as exc:
        complain(f"{exc}\nIs it running? Try: systemctl status axiond. Another socket is named with --socket or AXIOND_ADMIN_SOCKET.")
        return FAILED


def find_socket(option: Path | None, manifest: Path) -> Path:
    """The option or its variable, else what the manifest says, else the default; a manifest with mistakes must not hide the daemon."""
    if option:
        return option
    server = merge(gather(manifest.absolute(), Files({}), os.environ).documents).tables["server"]
    match server:
        case {"admin_socket": str(socket)}:
            return Path(socket)
        case {"runtime_dir": str(folder)}:
            return Path(folder) / "admin.sock"
    return DEFAULT_SOCKET


def read(path: Path) -> bytes:
    """The bytes of a file. Raises AxiondError."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise AxiondError(f"{path}: {exc.strerror}") from exc
