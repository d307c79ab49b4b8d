"""Trivium: the whole education of a language model, from raw text to a served model.

    import trivium as tv
    run = tv.train("recipes/clm.yaml")
    model = tv.load(run.final)
    print(model.generate("def add(a, b):", max_new_tokens=40, temperature=0))

Importing this package does not import torch; the first use of a model does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.lazy import lazy_attributes

__version__ = "0.1.0"
__all__ = ["__version__", "TriviumError", "compare", "find_lr", "load", "sweep", "train"]

if TYPE_CHECKING:
    from trivium.drivers.compare import compare as compare
    from trivium.drivers.lr_finder import find_lr as find_lr
    from trivium.drivers.single import train as train
    from trivium.drivers.sweep import sweep as sweep
    from trivium.errors import TriviumError as TriviumError
    from trivium.inference.model import load as load

__getattr__ = lazy_attributes(
    __name__,
    {
        "find_lr": "trivium.drivers.lr_finder",
        "compare": "trivium.drivers.compare",
        "load": "trivium.inference.model",
        "sweep": "trivium.drivers.sweep",
        "train": "trivium.drivers.single",
        "TriviumError": "trivium.errors",
    },
)
