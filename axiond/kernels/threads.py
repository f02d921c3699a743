"""
Bind the threads of this process that compute, at any time: libgomp reads its environment once, when it is loaded.

What is loaded already in a forked process is bound here, and so is what runs and shall move.
"""

import ctypes
import os
from collections.abc import Callable, Sequence

import torch

import axiond.kernels.openmp  # noqa: F401  torch's OpenMP is to be found

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def bind(cores: Sequence[int]) -> None:
    """
    Compute on *cores* from now on, one thread on each; the calling thread, which is to be the computing one, on the first.

    Raises:
        OSError: this process may not use one of them.
    """
    set_count(len(cores))
    _on_each(len(cores), lambda thread: os.sched_setaffinity(0, {cores[thread]}))


def set_count(threads: int) -> None:
    """Compute with so many threads, where vLLM has replaced torch.set_num_threads() by one that does nothing too."""
    torch._C.set_num_threads(threads)


def _on_each(threads: int, act: Callable[[int], None]) -> None:
    """Call *act* with its number on each of OpenMP's threads."""
    library = ctypes.CDLL(None)
    failures: list[OSError] = []

    def region(_: object) -> None:
        try:
            act(library.omp_get_thread_num())
        except OSError as exc:
            failures.append(exc)

    library.GOMP_parallel(_Region(region), None, ctypes.c_uint(threads), ctypes.c_uint(0))
    if failures:
        raise failures[0]
