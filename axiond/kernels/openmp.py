"""
Importing this lets the native module find torch's OpenMP; so it is imported before that.

The native module is linked to no OpenMP, for a second one would have threads of its own. Some builds of torch open
theirs for everybody, others, on aarch64, for themselves only.
"""

import contextlib
import ctypes
import os
from itertools import chain
from pathlib import Path

import torch

_torch = Path(torch.__file__).parent
for _path in chain(_torch.glob("lib/libgomp*.so*"), _torch.parent.glob("torch.libs/libgomp*.so*")):
    with contextlib.suppress(OSError):  # it lies there, but is not the one that is loaded
        ctypes.CDLL(str(_path), os.RTLD_NOLOAD | ctypes.RTLD_GLOBAL)
