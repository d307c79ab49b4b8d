"""The number of threads on the CPU, told to torch and to MKL, its library of matrix products."""

from __future__ import annotations

import ctypes
import os

from trivium.lazy import torch


def use_threads(number: int) -> bool:
    """Sets the threads of the whole process; True if MKL is there to be told.

    `torch.set_num_threads` forbids MKL to take fewer threads than this. Attention on the CPU calls MKL from inside of
    threads that are at work already; each of its small products is then cut up for threads there are not, and with
    short sequences takes twice its time. What follows here is how torch leaves MKL if that function is never called:
    MKL follows OpenMP's number, and takes one thread inside of another's work.
    """
    torch.set_num_threads(number)
    library = ctypes.CDLL(torch._C.__file__)  # finds the names of what torch loaded
    follow, adapt = (getattr(library, name, None) for name in ("MKL_Set_Num_Threads_Local", "MKL_Set_Dynamic"))
    if follow is None or adapt is None:
        return False
    follow(0)
    adapt(1)
    return True


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(ranks: int = 1) -> int:
    """Threads of each of the processes of a run on this machine: of one alone OMP_NUM_THREADS, or else all cores.

    Several share the cores: torchrun sets OMP_NUM_THREADS to 1 where nobody has, which says nothing about them.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if ranks == 1 and asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, usable_cores() // ranks)
