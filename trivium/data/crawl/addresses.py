"""Which machines a crawl may talk to: public addresses only, checked after resolution and used as checked.

A name is resolved once for each connection, every address it has is looked at, and the connection goes to one of
exactly these: a name that answers differently the next time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from trivium.data.extraction import web_package

if TYPE_CHECKING:
    import httpcore2

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The IP addresses of a host."""

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"],
    )
)
"""Where machines of cloud providers find their credentials; one of them looks public."""

_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.ip_network("::/96")
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")


class ForbiddenAddress(Exception):
    """A host that resolves to an address which a crawl must not reach; the message is the reason."""


def forbidden(address: str) -> str | None:
    """Why this address must not be reached; None if it is an ordinary public one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = _embedded(found)
        if inner is not None:
            return forbidden(str(inner))
        if found in _SITE_LOCAL:
            return "private address"
    if found in _METADATA:
        return "metadata service"
    for reason, wrong in (
        ("loopback address", found.is_loopback),
        ("link-local address", found.is_link_local),
        ("multicast address", found.is_multicast),
        ("private address", found.is_private or found.is_unspecified or found.is_reserved),
    ):
        if wrong:
            return reason
    return None if found.is_global else "private address"


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for, in any of the known ways."""
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    if address.teredo:
        return address.teredo[1]
    if any(address in network for network in _NAT64) or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses the system knows for a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def checked_backend(resolver: Resolve, *, allow_private: bool) -> httpcore2.AsyncNetworkBackend:
    """What opens connections, and only to addresses that were looked at."""
    httpcore = web_package("httpcore2", "crawling")
    web_package("anyio", "crawling")

    class Checked(httpcore.AsyncNetworkBackend):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._inner = httpcore.AnyIOBackend()

        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Iterable[Any] | None = None,
        ) -> Any:
            try:
                addresses = await resolver(host, port)
            except (OSError, UnicodeError) as error:
                raise httpcore.ConnectError(f"no address of {host} is known") from error
            reasons = [] if allow_private else [reason for reason in map(forbidden, addresses) if reason]
            if reasons:
                raise ForbiddenAddress(reasons[0])
            problem: Exception = httpcore.ConnectError(f"{host} has no address")
            for address in addresses:
                try:
                    return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
                except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                    problem = error
            raise problem

        async def sleep(self, seconds: float) -> None:
            await self._inner.sleep(seconds)

    return Checked()
