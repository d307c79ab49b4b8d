"""The C library's memory allocator, told what a training step is."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let the process keep memory it has freed, for the next tensor; True if the C library can (glibc).

    By default glibc gives every large block back to the system at once, and the next tensor of the same size gets
    fresh pages that must be zeroed first: a tenth of a training step on the CPU. The peak stays the same; memory is
    only held between the peaks. Meant for the start of a training run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 16 << 20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def give_back_freed_memory() -> bool:
    """Give the system what the process has freed and keeps, holes between tensors included; True if glibc did.

    For the moment after large tensors were replaced by small ones, as when a base is quantised.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
