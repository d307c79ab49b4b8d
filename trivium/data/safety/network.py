"""E-mail addresses, IP and MAC addresses, passwords in URLs, and keys of services.

Each pattern is bounded, or possessive, so that no text makes it slow.
"""

from __future__ import annotations

import ipaddress
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator

from trivium.data.safety.findings import Finding

_LOCAL = r"[^\W_][\w.!#$%&'*+/=?^`{|}~-]{0,63}"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(
    rf"(?<![\w.+-])(?P<local>{_LOCAL})@(?P<domain>(?:{_LABEL}\.){{1,8}}(?:[^\W\d_]{{2,24}}|xn--[a-z0-9-]{{2,59}}))(?![\w@])"
)
_SPELLED = re.compile(
    r"(?<![\w.+-])(?P<local>[^\W_][\w.+-]{0,63})"
    r"\s{0,2}[\[({<]\s?(?:at|AT|@)\s?[\])}>]\s{0,2}"
    r"(?P<domain>[^\W_][\w-]{0,62}(?:(?:\.|\s{0,2}[\[({<]\s?(?:dot|DOT|\.)\s?[\])}>]\s{0,2})[^\W_][\w-]{0,62}){1,5})(?!\w)"
)
_AT = re.compile(r"[\[({<]\s?(?:at|AT|@)\s?[\])}>]")
_DOT = re.compile(r"\s{0,2}[\[({<]\s?(?:dot|DOT|\.)\s?[\])}>]\s{0,2}")
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)\Z", re.IGNORECASE)
"""Domains that belong to nobody (RFC 2606, RFC 6761)."""


_LOGGED_IN = re.compile(r"://[^\s/@]{1,128}:\Z")


def emails(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
    """Addresses, also `name [at] host [dot] org`; those at reserved domains (example.com) belong to nobody."""
    patterns = [_EMAIL] if "@" in text else []
    if _AT.search(text, start, end):
        patterns.append(_SPELLED)
    for pattern in patterns:
        for match in pattern.finditer(text, start, end):
            domain = _DOT.sub(".", match["domain"]).lower()
            if _LOGGED_IN.search(text, max(0, match.start() - 140), match.start()):
                continue
            if not _RESERVED.search(domain) and not domain.rpartition(".")[2].isdigit():
                yield Finding("email", *match.span(), f"{match['local'].lower()}@{domain}", 2)


_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){1,7}(?:::)?(?![\w:])")
_VERSION = re.compile(
    r"(?:version|release|v|ver\.?|build|section|sec\.?|§|chapter|oid|[=<>~!]=)\s{0,2}[:=]?\s{0,2}\Z", re.IGNORECASE
)
_GLOBAL6 = ipaddress.IPv6Network("2000::/3")
_DOCUMENTED6 = ipaddress.IPv6Network("2001:db8::/32")


class Addresses:
    """IP addresses. private: also those of private, local and documentation networks, which lead to nobody."""

    def __init__(self, *, private: bool = False) -> None:
        self.private = private

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """IPv4 that is no version number, and IPv6 in any of its spellings."""
        if "." in text:
            for match in _IPV4.finditer(text, start, end):
                if not _VERSION.search(text, max(0, match.start() - 12), match.start()):
                    yield from self._checked("ipv4", match)
        if ":" in text:
            for match in _IPV6.finditer(text, start, end):
                yield from self._checked("ipv6", match)

    def _checked(self, kind: str, match: re.Match[str]) -> Iterator[Finding]:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return
        if isinstance(address, ipaddress.IPv6Address):
            public = address in _GLOBAL6 and address not in _DOCUMENTED6
        else:
            public = address.is_global and not address.is_multicast and max(address.packed) > 9  # 3.1.1.6: a version
        if public or (self.private and not (kind == "ipv6" and match[0].count(":") < 3)):
            yield Finding(kind, *match.span(), address.compressed, 4)


_MAC = re.compile(
    r"(?<![\w:.-])(?:[0-9A-Fa-f]{2}(?P<sign>[:-])(?:[0-9A-Fa-f]{2}(?P=sign)){4}[0-9A-Fa-f]{2}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![\w:-])"
)


def macs(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
    """Hardware addresses of network cards; not all zeros or ones, nor the range for documentation (RFC 7042)."""
    for match in _MAC.finditer(text, start, end):
        plain = re.sub(r"[:.-]", "", match[0]).lower()
        if len(set(plain)) > 2 and not plain.startswith("00005e0053"):
            yield Finding("mac", *match.span(), plain, 3)


_LOGIN = re.compile(
    r"(?<!\w)[A-Za-z][A-Za-z0-9+.-]{1,15}://(?P<login>[^\s/@:\"'<>\[\]]{1,128}:[^\s/@\"'<>]{1,256})@(?=[\w\[])"
)
_QUERY = re.compile(
    r"(?<=[?&])(?:access_token|auth_token|api_?key|token|secret|client_secret|password|passwd|pwd|signature|sig)"
    r"=(?P<login>[^\s&#\"'<>()\[\]{}]{6,512})",
    re.IGNORECASE,
)


def url_credentials(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
    """Name and password in `https://name:password@host`, and tokens in the query of a URL; the rest of it stays."""
    if "://" not in text:
        return
    for pattern in (_LOGIN, _QUERY):
        for match in pattern.finditer(text, start, end):
            value = match["login"]
            if not _stands_for_a_value(value.rpartition(":")[2]):
                yield Finding("url_credentials", *match.span("login"), value, 1)


_KEYS: dict[str, str] = {
    "AKIA": r"AKIA[0-9A-Z]{16}",
    "ASIA": r"ASIA[0-9A-Z]{16}",
    "ghp_": r"ghp_[A-Za-z0-9]{36,255}+",
    "gho_": r"gho_[A-Za-z0-9]{36,255}+",
    "ghu_": r"ghu_[A-Za-z0-9]{36,255}+",
    "ghs_": r"ghs_[A-Za-z0-9]{36,255}+",
    "ghr_": r"ghr_[A-Za-z0-9]{36,255}+",
    "github_pat_": r"github_pat_[A-Za-z0-9_]{22,255}+",
    "glpat-": r"glpat-[\w-]{20,64}+",
    "xox": r"xox[abeoprs]-[A-Za-z0-9-]{10,255}+",
    "hooks.slack.com": r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,80}+",
    "k_live_": r"[rs]k_live_[A-Za-z0-9]{16,255}+",
    "k_test_": r"[rs]k_test_[A-Za-z0-9]{16,255}+",
    "sk-": r"sk-[A-Za-z0-9_-]{20,255}+",
    "AIza": r"AIza[\w-]{35}",
    "ya29.": r"ya29\.[\w-]{20,512}+",
    "GOCSPX-": r"GOCSPX-[\w-]{20,64}+",
    "hf_": r"hf_[A-Za-z0-9]{30,64}+",
    "npm_": r"npm_[A-Za-z0-9]{36}",
    "pypi-AgEI": r"pypi-AgEI[\w-]{50,512}+",
    "SG.": r"SG\.[\w-]{16,32}\.[\w-]{16,64}+",
    "dop_v1_": r"dop_v1_[0-9a-f]{64}",
    "shp": r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    "key-": r"key-[0-9a-f]{32}",
    ":AA": r"\d{8,10}:AA[\w-]{33}",
    "eyJ": r"eyJ[\w-]{10,4096}+\.eyJ[\w-]{10,8192}+\.[\w-]{10,4096}+",
    "AccountKey=": r"(?<=AccountKey=)[A-Za-z0-9+/]{60,100}={0,2}",
    "AGE-SECRET-KEY-1": r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
}
"""What a key of a service contains in any case, and its pattern."""
_COMPILED = {sign: re.compile(rf"(?<![\w-]){pattern}(?![\w])") for sign, pattern in _KEYS.items()}
_COMPILED["AccountKey="] = re.compile(_KEYS["AccountKey="])
_ASSIGNED = re.compile(
    r"[AaCcPpSs](?<![A-Za-z0-9].)(?i:pi[_-]?key|ecret[_-]?key|ccess[_-]?key|lient[_-]?secret|uth[_-]?token|"
    r"ccess[_-]?token|assword|asswd|assphrase)[\"']?\s{0,3}(?::=|=>|[:=])\s{0,3}(?P<quote>[\"']?)(?P<key>[^\s\"'`,;(){}\[\]<>]{8,256}+)",
)
_PEM_BEGIN, _PEM_END = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----"), "-----END "


class Secrets:
    """Keys of services by their prefixes, private keys, and (`assigned`) random values of `password = ...`."""

    def __init__(self, *, assigned: bool = True) -> None:
        self.assigned = assigned

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """All secrets; a text without any of the prefixes costs a search for each."""
        for sign, pattern in _COMPILED.items():
            if sign in text:
                for match in pattern.finditer(text, start, end):
                    if _random(match[0], least=2.2):
                        yield Finding("secret", *match.span(), match[0], 0)
        yield from _private_keys(text)
        if self.assigned and ("=" in text or ":" in text):
            for match in _ASSIGNED.finditer(text, start, end):
                value = match["key"]
                if not _stands_for_a_value(value) and _random(value, least=2.75) and _mixed(value):
                    yield Finding("secret", *match.span("key"), value, 1)


def _private_keys(text: str) -> Iterator[Finding]:
    if "PRIVATE KEY" not in text:
        return
    for begin in _PEM_BEGIN.finditer(text):
        at = text.find(_PEM_END, begin.end(), begin.end() + 20_000)
        end = text.find("-----", at + len(_PEM_END), at + 80) if at >= 0 else -1
        if end >= 0:
            yield Finding("secret", begin.start(), end + 5, text[begin.end() : at], 0)


def _random(value: str, *, least: float) -> bool:
    """Whether the characters vary as in a key: bits of entropy for each of them."""
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values()) >= least


def _mixed(value: str) -> bool:
    """Letters and digits: a name of a variable or a sentence is no password."""
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def _stands_for_a_value(value: str) -> bool:
    """`$PASSWORD`, `<token>`, `{key}`, `xxxx`, `password`: written where a reader puts his own."""
    plain = value.strip("'\"").lower()
    return (
        plain[:1] in "$<{%[("
        or len(set(plain)) <= 2
        or plain
        in {
            "password",
            "passwd",
            "secret",
            "token",
            "user",
            "pass",
            "your_token",
            "changeme",
            "pwd",
            "guest",
            "mypassword",
        }
        or plain.startswith(("your", "os.environ", "process.env", "getenv", "config", "self.", "my_", "example"))
    )
