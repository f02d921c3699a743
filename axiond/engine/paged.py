"""Memory that is there at once and gets its pages meanwhile: zeroing a KV cache takes half a second for each GiB."""

import ctypes
import mmap
import os
import threading
from typing import Any

MADV_POPULATE_WRITE = 23
SMALLEST_BYTES = 64 * 2**20
STEP_BYTES = 32 * 2**20


class PagedLater:
    """Stands in for torch where vLLM makes its KV cache: one large tensor of zeros."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def zeros(self, *size: Any, **options: Any) -> Any:
        torch = self._torch
        if len(size) == 1 and isinstance(size[0], int) and size[0] >= SMALLEST_BYTES and options.get("dtype") == torch.int8:
            return torch.frombuffer(zeroed(size[0]), dtype=torch.int8)
        return torch.zeros(*size, **options)


def zeroed(count: int) -> mmap.mmap:
    """Map *count* bytes, which are zero. A thread has the kernel supply them, on whichever core this process's parent may use."""
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    threading.Thread(target=_populate, args=(memory, os.sched_getaffinity(os.getppid())), daemon=True).start()
    return memory


def _populate(memory: mmap.mmap, cores: set[int]) -> None:
    """A kernel that knows no such advice supplies each page when it is first used."""
    os.sched_setaffinity(0, cores)
    start, madvise = ctypes.addressof(ctypes.c_char.from_buffer(memory)), ctypes.CDLL(None).madvise
    for done in range(0, len(memory), STEP_BYTES):
        size = min(STEP_BYTES, len(memory) - done)
        madvise(ctypes.c_void_p(start + done), ctypes.c_size_t(size), ctypes.c_int(MADV_POPULATE_WRITE))
