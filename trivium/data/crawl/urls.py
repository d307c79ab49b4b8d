"""Addresses: one spelling for each page, and which of them a crawl may visit."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from trivium.errors import DataError

URL_CHARACTERS = 2000
"""Longer addresses are traps or data."""

_TRACKING = re.compile(
    r"utm_\w+|gclid|fbclid|msclkid|dclid|yclid|mc_[ce]id|_ga|phpsessid|jsessionid|sessionid|sid", re.I
)
_SESSION = re.compile(r";(?:jsessionid|sid|phpsessid)=[^/?;]*", re.IGNORECASE)
_HOST = re.compile(
    r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|\d+)(?:\.(?:0x[0-9a-f]*|\d+)){0,3}")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_KEPT = _UNRESERVED | frozenset(b"!$&'()*+,;=:@/?%[]|")


class Refused(Exception):
    """An address that is not visited; the message is the reason, one of a few fixed phrases."""


def canonical(link: str, base: str | None = None) -> str:
    """The address as every link to the same page is spelt, without fragment, tracking and session parameters.

    As browsers do (https://url.spec.whatwg.org): backslashes are slashes, and numbers in any base are IPv4 addresses.
    """
    link = re.sub(r"[\t\r\n]", "", link).strip("".join(map(chr, range(33))))
    if len(link) > URL_CHARACTERS:
        raise Refused("address too long")
    if not re.match(r"(?!https?:)[a-zA-Z][a-zA-Z0-9+.-]*:", link, re.IGNORECASE):
        before, mark, after = re.match(r"([^?#]*)([?#]?)(.*)", link, re.DOTALL).groups()  # type: ignore[union-attr]
        link = before.replace("\\", "/") + mark + after
    try:
        parts = urlsplit(urljoin(base, link) if base else link)
        port = parts.port
    except ValueError:
        raise Refused("malformed address") from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        raise Refused("neither http nor https")
    if "@" in parts.netloc:
        raise Refused("user name in the address")
    if port in (None, 80, 443):
        port = None if port == {"http": 80, "https": 443}[scheme] else port
    elif port < 1024:
        raise Refused("port of another service")
    host = _host(parts)
    found = f"{scheme}://{host}{f':{port}' if port else ''}{_path(parts.path)}"
    query = _query(parts.query)
    found = f"{found}?{query}" if query else found
    if len(found) > URL_CHARACTERS:
        raise Refused("address too long")
    return found


def host_of(url: str) -> str:
    """The host of a canonical address, without port and brackets."""
    return urlsplit(url).hostname or ""


def origin_of(url: str) -> str:
    """Scheme, host and port of a canonical address: what a robots.txt file speaks for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def check_trap(url: str) -> None:
    """Refuse addresses as endless sites make them: the same part again and again, very deep, very many parameters."""
    parts = urlsplit(url)
    steps = [step for step in parts.path.split("/") if step]
    if len(steps) > 20 or parts.query.count("&") >= 20 or any(steps.count(step) > 3 for step in set(steps)):
        raise Refused("looks like an endless site")


class Scope:
    """Which addresses belong to a crawl.

    domains:          hosts with everything below them.
    include, exclude: patterns with * over the whole address; the first must match if there are any.
    blocked:          hosts (with everything below them) and beginnings of addresses that are never visited.
    """

    def __init__(
        self, domains: Iterable[str], include: Sequence[str], exclude: Sequence[str], blocked: frozenset[str]
    ) -> None:
        self.domains = frozenset(domains)
        self._include = [re.compile(fnmatch.translate(pattern)) for pattern in include]
        self._exclude = [re.compile(fnmatch.translate(pattern)) for pattern in exclude]
        self._hosts = frozenset(line for line in blocked if "://" not in line)
        self._beginnings = tuple(line for line in blocked if "://" in line)

    def check(self, url: str, *, start: bool = False) -> None:
        """Refuse an address outside; a start address need not match `include`."""
        host = host_of(url)
        if self.domains and self.domains.isdisjoint(_above(host)):
            raise Refused("other domain")
        if not self._hosts.isdisjoint(_above(host)) or url.startswith(self._beginnings):
            raise Refused("in the blocklist")
        if any(pattern.match(url) for pattern in self._exclude):
            raise Refused("excluded by a pattern")
        if self._include and not start and not any(pattern.match(url) for pattern in self._include):
            raise Refused("not included by a pattern")


def blocklist(path: Path) -> frozenset[str]:
    """The lines of a blocklist: a domain, the beginning of an address, or a line of a hosts file; # for comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the blocklist cannot be read", where=path, value=str(error), fix="check the file") from error
    found = set()
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            word = words[-1]
            found.add(word if "://" in word else word.lower().strip("."))
    return frozenset(found)


def domain_of(host: str) -> str:
    """What a crawl that begins at this host may visit: the host, and everything below it (without www.)."""
    return host.removeprefix("www.")


def _above(host: str) -> list[str]:
    """The host and the domains it lies in; an IP address lies in none."""
    if _is_address(host):
        return [host]
    parts = host.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host(parts: SplitResult) -> str:
    host = unicodedata.normalize("NFKC", unquote(parts.hostname or "")).lower().rstrip(".")
    host = host.replace("\u3002", ".")
    if not host:
        raise Refused("malformed address")
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            raise Refused("malformed address") from None
    if _NUMERIC.fullmatch(host):
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            raise Refused("malformed address") from None
    try:
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError:
        raise Refused("malformed address") from None
    if not _HOST.fullmatch(host):
        raise Refused("malformed address")
    return host


def _path(path: str) -> str:
    done: list[str] = []
    steps = _SESSION.sub("", _escaped(path)).split("/")
    for step in steps:
        if step == "..":
            done = done[:-1] or done[:1]
        elif step != ".":
            done.append(step)
    if steps[-1] in (".", ".."):
        done.append("")
    found = "/".join(done)
    return found if found.startswith("/") else f"/{found}"


def _query(query: str) -> str:
    parameters = [part for part in _escaped(query).split("&") if part]
    return "&".join(part for part in parameters if not _TRACKING.fullmatch(part.partition("=")[0]))


def _escaped(text: str) -> str:
    """Percent signs and two capital digits for what needs them, plain characters for what does not."""

    def plain(match: re.Match[str]) -> str:
        code = int(match[1], 16)
        return chr(code) if code in _UNRESERVED else f"%{code:02X}"

    text = re.sub("%([0-9a-fA-F]{2})", plain, text)
    text = re.sub("%(?![0-9a-fA-F]{2})", "%25", text)
    return "".join(chr(code) if code in _KEPT else f"%{code:02X}" for code in text.encode("utf-8", "replace"))
