"""A small web of many hosts on one local server, with everything a crawler must cope with."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "morning",
    "paper",
    "bridge",
    "silver",
    "market",
    "winter",
    "candle",
    "forest",
    "silent",
    "harbour",
]


def text(seed: int, paragraphs: int = 3) -> str:
    """Paragraphs that differ from page to page."""
    sentence = " ".join(WORDS[(seed * 7 + n * (seed % 5 + 1)) % len(WORDS)] for n in range(30))
    return "".join(f"<p>Page {seed}, part {n}: {sentence}.</p>" for n in range(paragraphs))


def page(seed: int, links: Sequence[str] = (), head: str = "") -> bytes:
    listed = "".join(f'<li><a href="{link}">to {n}</a></li>' for n, link in enumerate(links))
    return (
        f'<!doctype html><html lang="en"><head><title>Title {seed}</title>{head}</head>'
        f"<body><nav><ul>{listed}</ul></nav>"
        f"<article><h1>Title {seed}</h1>{text(seed)}</article></body></html>"
    ).encode()


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    kind: str = "text/html; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)
    stream: Callable[[Any], None] | None = None


Route = "Answer | bytes | Callable[[Any], Answer]"


class Site:
    """routes: (host, path) -> answer; `robots` by host. Requests are counted, with the longest queue at a host."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Any] = {}
        self.fallback: Callable[[str, str], Any] | None = None
        self.requests: list[tuple[str, str, float]] = []
        self.agents: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.busiest: dict[str, int] = defaultdict(int)
        self.lock = threading.Lock()
        self.port = 0

    def add(self, host: str, path: str, answer: Any) -> None:
        self.routes[host, path] = answer

    def url(self, host: str, path: str = "/") -> str:
        return f"http://{host}:{self.port}{path}"

    def asked(self, host: str, *, robots: bool = False) -> list[str]:
        return [path for name, path, _ in self.requests if name == host and (robots or path != "/robots.txt")]

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        if host.endswith(".gone"):
            raise OSError("no such host")
        return ["127.0.0.1"]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        host = (handler.headers.get("Host") or "").rpartition(":")[0]
        path = handler.path
        with self.lock:
            self.requests.append((host, path, time.monotonic()))
            self.agents[handler.headers.get("User-Agent", "")] += 1
            self.busy[host] += 1
            self.busiest[host] = max(self.busiest[host], self.busy[host])
        try:
            found = self.routes.get((host, path))
            if found is None and self.fallback is not None:
                found = self.fallback(host, path)
            if callable(found):
                found = found(handler)
            if isinstance(found, bytes):
                found = Answer(found)
            found = found or Answer(b"nothing here", 404, "text/plain")
            handler.send_response(found.status)
            if found.kind:
                handler.send_header("Content-Type", found.kind)
            for name, value in found.headers.items():
                handler.send_header(name, value)
            if found.stream is None and found.status != 304:
                handler.send_header("Content-Length", str(len(found.body)))
            if found.stream is not None:
                handler.send_header("Connection", "close")
            handler.end_headers()
            if found.stream is not None:
                handler.close_connection = True
                handler.wfile.flush()
                found.stream(handler.wfile)
            elif found.status != 304:
                handler.wfile.write(found.body)
        finally:
            with self.lock:
                self.busy[host] -= 1


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                site.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("0.0.0.0", 0), Handler)  # 127.0.0.1 and 127.0.0.2
    site.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def tree(site: Site, host: str, pages: int) -> None:
    """Pages /0 to /n, each linking to the next ones and back to the first."""
    for number in range(pages):
        links = [f"/{number * 3 + more}" for more in (1, 2, 3) if number * 3 + more < pages]
        site.add(host, f"/{number}", page(number, [*links, "/0", f"/{number}#top"]))
    site.add(host, "/", page(0, ["/0"], head="<!-- start -->"))


def packed(data: bytes) -> bytes:
    return gzip.compress(data)
