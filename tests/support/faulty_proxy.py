"""An HTTP proxy that stands before a real server and misbehaves as told: slow, failing, cutting off, forgetful."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Faults:
    """What to do with the next requests. ``matches`` picks them by method and path."""

    matches: Callable[[str, str], bool] = lambda method, path: True
    refuse: int = 0
    """So many requests are answered 503."""
    cut_off: int = 0
    """So many answers end after half of their body."""
    hang_seconds: float = 0.0
    drop_headers: frozenset[str] = frozenset()
    """Request headers (lower case) that the server never sees."""
    one_at_a_time: bool = False
    """Requests pass one after the other, which makes a server's check-then-write atomic."""
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """Whether one more of a counted fault is due."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(left - 1, 0))
            return left > 0


@dataclass(frozen=True)
class FaultyProxy:
    """A running proxy; set ``faults`` fields at any time."""

    port: int
    faults: Faults


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: tuple[str, int]
    faults: Faults

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.faults.matches(self.command, self.path):
            self._answer(*self._ask(body, frozenset()))
            return
        with self.faults.lock:
            self.faults.seen += 1
        if self.faults.take("refuse"):
            self._answer(503, [], b"")
            return
        time.sleep(self.faults.hang_seconds)
        with self.faults.turn if self.faults.one_at_a_time else contextlib.nullcontext():
            status, headers, data = self._ask(body, self.faults.drop_headers)
        self._answer(status, headers, data, cut_off=self.faults.take("cut_off"))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _ask(self, body: bytes, dropped: frozenset[str]) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in dropped | {"expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, cut_off: bool = False) -> None:
        self.send_response_only(status)
        lengths = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if "content-length" not in lengths:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut_off else data)
        self.close_connection = self.close_connection or cut_off

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client or a server that went away is part of the game."""


@contextlib.contextmanager
def run_faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    """A proxy on loopback to a server on loopback; it passes everything on until told otherwise."""
    faults = Faults()
    handler = type("Handler", (_Handler,), {"upstream": ("127.0.0.1", upstream_port), "faults": faults})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield FaultyProxy(server.server_address[1], faults)
        finally:
            server.shutdown()
            thread.join()
