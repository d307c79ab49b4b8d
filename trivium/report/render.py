"""Pages: one HTML file that needs nothing else, runs no script and shows any text as text.

Every value goes through jinja2's escaping; the page's own policy forbids scripts, requests and forms besides, so even
a hole in the escaping could neither run code nor send anything.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trivium import __version__
from trivium.core.progress import readable_bytes, readable_count, readable_seconds

TEXT_LIMIT = 1500
"""Characters of one sample that are shown."""


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """A page in UTF-8; what is not even Unicode (lone surrogates) becomes a question mark."""
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    page = _environment().get_template(template).render(**values, version=__version__, written=now)
    return page.encode("utf-8", errors="replace")


@functools.cache
def _environment() -> Environment:
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, shortened=shortened, count=readable_count, duration=readable_seconds)
    environment.filters.update(size=readable_bytes, percent=percent, link=safe_link, numeric=numeric)
    return environment


def visible(text: object) -> str:
    """Control characters as replacement characters, so that odd bytes of a young model can be seen."""
    return _CONTROLS.sub("\ufffd", str(text))


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shortened(text: object, limit: int = TEXT_LIMIT) -> str:
    """The beginning of a long text, and how much more there is."""
    whole = str(text)
    return whole if len(whole) <= limit else f"{whole[:limit]}… ({len(whole) - limit:,} more characters)"


def percent(share: float, digits: int = 0) -> str:
    """0.123 -> 12 %."""
    return f"{share:.{digits}%}".replace("%", "\u202f%")


def numeric(text: object) -> bool:
    """Whether a cell of a table begins like a number, and is set to the right."""
    return str(text).lstrip("+-\u2212~")[:1].isdigit()


def safe_link(target: str) -> str:
    """`target` if it is a relative path or an address of the web, else `#`: a link never runs anything."""
    plain = "".join(character for character in target if character.isprintable()).strip()
    return plain if urlsplit(plain).scheme in ("", "http", "https") and not plain.startswith("//") else "#"
