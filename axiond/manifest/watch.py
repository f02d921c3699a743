"""Interim poll; replaced by the watching of folders."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path


async def watch(path: Path, files: Callable[[], Iterable[Path]], wake: Callable[[], None], poll_s: float = 5.0) -> None:
    """Wake when the content of a file changes."""
    known = None
    while True:
        seen = [(str(file), file.read_bytes() if file.exists() else b"") for file in files()]
        if known is not None and seen != known:
            wake()
        known = seen
        await asyncio.sleep(0.05)
