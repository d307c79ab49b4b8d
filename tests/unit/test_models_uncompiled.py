"""Compiled blocks run eagerly while any thread asks for it, and compiled again afterwards."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from trivium.models.uncompiled import UNCOMPILED


class Recorder:
    """A backend of torch.compile that counts what it is asked to compile."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        self.compiled += 1
        return graph.forward


def compiles() -> bool:
    """Whether a layer that was never compiled before is compiled now."""
    recorder, layer = Recorder(), nn.Linear(2, 2)
    torch.compile(layer, backend=recorder)(torch.ones(1, 2))
    return bool(recorder.compiled)


def test_threads_that_end_in_another_order_leave_nothing_behind() -> None:
    assert compiles()
    began, over = threading.Event(), threading.Event()

    def second() -> None:
        with UNCOMPILED:
            began.set()
            over.wait()

    thread = threading.Thread(target=second)
    with UNCOMPILED:
        thread.start()
        began.wait()
        assert not compiles()
    assert not compiles()  # the other thread is still inside
    over.set()
    thread.join()
    assert compiles()


def test_it_nests_and_ends_on_errors() -> None:
    try:
        with UNCOMPILED, UNCOMPILED:
            raise KeyError
    except KeyError:
        pass
    assert compiles()
