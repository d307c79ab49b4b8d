"""Memory of a training run on the CPU.

The C library gives every large block back to the system at once, so the next tensor of the same size gets fresh pages
that must be zeroed first: a tenth of a training step. Told to keep them, it cuts them up for smaller tensors, until
half of what a run holds is holes. So torch's large tensors get an allocator of their own (`allocator.cpp`), which keeps
whole blocks for the next tensor of about that size, and moves pages between blocks of other sizes: a fifth to a third
less memory, and up to a tenth faster. Where it cannot be compiled the C library is told to keep what is freed.
"""

from __future__ import annotations

import ctypes
from functools import cache

from trivium.models.native import allocator

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


@cache
def keep_freed_memory() -> bool:
    """From now on keep the memory of freed tensors for the next ones; True if that can be done.

    Meant for the start of a training run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 16 << 20}
    kept = mallopt is not None and all([mallopt(name, value) == 1 for name, value in settings.items()])
    ours = allocator()
    if ours is not None:
        ours.trivium_install_allocator()
    return kept or ours is not None


def give_back_freed_memory() -> bool:
    """Give the system what the process has freed and keeps, holes between tensors included; True if that can be done.

    For the moment after large tensors were replaced by small ones, as when a base is quantised, or after a run.
    """
    if (ours := allocator()) is not None:
        ours.trivium_trim()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
