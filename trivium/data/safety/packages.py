"""The packages that know national formats; they belong to the extra `privacy`.

python-stdnum is LGPL: it is installed beside Trivium and called through its public functions, never changed or copied.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from trivium.errors import TriviumError


@cache
def stdnum(name: str) -> Any:
    """A module of python-stdnum: `stdnum("de.idnr")`."""
    return _module("stdnum", f"stdnum.{name}", "national numbers and bank accounts")


@cache
def phonenumbers() -> Any:
    """The port of Google's libphonenumber."""
    return _module("phonenumbers", "phonenumbers", "telephone numbers")


def _module(package: str, name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TriviumError(
            f"finding {what} needs a package that is not installed",
            value=package,
            fix='pip install "trivium[privacy]", or leave these kinds out (kinds: [...])',
        ) from error
