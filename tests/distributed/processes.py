"""Work on several gloo processes of this machine, for tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from trivium.core.distributed import start_processes


def run_ranks(work: Callable[..., Any], *arguments: Any, world: int = 2, timeout: float = 240) -> list[Any]:
    """`work(processes, *arguments)` on every rank; the results in order. An error on a rank is raised here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    children = [
        context.Process(target=_rank, args=(rank, world, port, pipes[rank][1], work, arguments))
        for rank in range(world)
    ]
    for child in children:
        child.start()
    results = []
    for pipe, _ in pipes:
        results.append(pipe.recv() if pipe.poll(timeout) else (False, f"no answer in {timeout} s"))
        if not results[-1][0]:
            break
    for child in children:
        if not all(good for good, _ in results):
            child.kill()
        child.join(30)
    for good, result in results:
        assert good, result
    return [tensors(result) for _, result in results]


def _rank(rank: int, world: int, port: int, out: Connection, work: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    try:
        processes = start_processes("ddp", torch.device("cpu"))
        out.send((True, arrays(work(processes, *arguments))))
        processes.barrier()
    except BaseException:
        out.send((False, traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def arrays(value: Any) -> Any:
    """Tensors as numpy arrays: torch would share their memory with a process that has ended."""
    return _mapped(value, torch.Tensor, lambda tensor: tensor.numpy())


def tensors(value: Any) -> Any:
    """The inverse of `arrays`."""
    import numpy

    return _mapped(value, numpy.ndarray, torch.from_numpy)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(entry, kind, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(entry, kind, change) for entry in value)
    return value
