"""An HTTP proxy in front of an S3 server that goes wrong on purpose, and counts what is asked of it.

    with moto_server() as upstream, Proxy(upstream, {"slow_down": 0.1, "stall": 0.02}, seed=1) as proxy:
        ... AWS_ENDPOINT_URL=proxy.url ...

A fault follows from the seed, the request and how often it was made before: the order in which requests arrive does not
matter. No request fails more than twice running.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import logging
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = ("slow_down", "internal_error", "reset_upload", "lost_answer", "reset_download", "stall")
SMALLEST_BROKEN_BYTES = 64  # half of less says little
LONGEST_STALL_S = 60.0
ANSWERS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
}


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it; `fault` is what it did instead of the answer, "" where it did nothing."""

    operation: str
    key: str
    fault: str
    size_bytes: int


class Proxy:
    """faults: kind -> probability. Attributes may be changed while it runs; `requests` holds all that was asked."""

    def __init__(
        self,
        upstream: str,
        faults: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        latency_s: float = 0.0,
        bytes_per_s: float = float("inf"),
    ) -> None:
        self.upstream, self.faults, self.seed = upstream, dict(faults or {}), seed
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s  # of each request; at once they do not share it
        self.expired_keys: set[str] = set()  # access key ids whose token has expired
        self.denied_keys: set[str] = set()  # keys of objects that nobody may touch
        self.on_request: Callable[[Request], None] = lambda _: None
        self.lose_answer_to = ""  # an operation: of each of its requests, the first answer is lost
        self.always = ""  # the fault of every request
        self.fail_parts_after: int | None = None  # every part of an upload with a higher number is refused
        self.lost: set[tuple[str, str]] = set()
        self.requests: list[Request] = []
        self.most_at_once, self._at_once = 0, 0  # requests under way
        self._made: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def counts(self) -> dict[str, int]:
        """Faults by kind."""
        return dict(Counter(one.fault for one in list(self.requests) if one.fault))

    def operations(self) -> dict[str, int]:
        """Requests by operation."""
        return dict(Counter(one.operation for one in list(self.requests)))

    def clear(self) -> None:
        self.requests.clear()
        self.most_at_once = 0

    def choose(self, name: str, possible: tuple[str, ...]) -> str:
        """The fault of this request, "" for none."""
        with self._lock:
            made = self._made[name]
            self._made[name] += 1
            if self._running[name] >= 2:
                self._running[name] = 0
                return ""
            for kind in possible:
                draw = hashlib.sha256(f"{self.seed} {kind} {made} {name}".encode()).digest()
                if int.from_bytes(draw[:8], "big") < self.faults.get(kind, 0.0) * 2**64:
                    self._running[name] += 1
                    return kind
            self._running[name] = 0
            return ""

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def hang(self) -> None:
        self._stopped.wait(LONGEST_STALL_S)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gives up on a stalled answer is what is wanted."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_any(self) -> None:
        with self.server.proxy.counted():
            self.handle_one()

    def handle_one(self) -> None:
        proxy = self.server.proxy
        if proxy.latency_s:
            time.sleep(proxy.latency_s)
        operation, key = operation_of(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.choose_fault(proxy, key, length)
        if fault == "reset_upload":
            self.rfile.read(length // 2)
            self.seen(operation, key, fault, length)
            self.reset()
            return
        body = self.rfile.read(length)
        if fault in ANSWERS:
            self.seen(operation, key, fault, 0)
            self.refuse(*ANSWERS[fault])
            return
        status, headers, content = self.forward(body)
        if fault in ("stall", "reset_download") and (status >= 300 or len(content) < SMALLEST_BROKEN_BYTES):
            fault = ""
        self.seen(operation, key, fault, len(content) or length)
        time.sleep((len(content) + length) / proxy.bytes_per_s)
        if fault == "lost_answer":  # what was asked for is done, and nobody hears of it
            self.reset()
            return
        self.answer(status, headers, content[: len(content) // 2] if fault else content)
        if fault == "stall":
            proxy.hang()
        if fault:
            self.reset()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def choose_fault(self, proxy: Proxy, key: str, length: int) -> str:
        signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        if signed and signed[1] in proxy.expired_keys:
            return "expired"
        if key in proxy.denied_keys:
            return "denied"
        if proxy.always:
            return proxy.always
        part = re.search(r"partNumber=(\d+)", self.path)
        if part and proxy.fail_parts_after is not None and int(part[1]) > proxy.fail_parts_after:
            return "slow_down"
        possible = ["slow_down", "internal_error"]
        possible += ["reset_upload"] if self.command == "PUT" and length >= SMALLEST_BROKEN_BYTES else []
        possible += ["lost_answer"] if self.command not in ("GET", "HEAD") else []
        possible += ["stall", "reset_download"] if self.command == "GET" and key else []
        if proxy.lose_answer_to == operation_of(self.command, self.path)[0]:
            what = self.path.partition("uploadId")[0]
            if what not in proxy.lost:
                proxy.lost.add(what)
                return "lost_answer"
        target = re.sub(r"uploadId=[^&]*", "", self.path)  # which the server makes up
        return proxy.choose(f"{self.command} {target} {self.headers.get('Range', '')}", tuple(possible))

    def seen(self, operation: str, key: str, fault: str, size_bytes: int) -> None:
        request = Request(operation, key, fault, size_bytes)
        self.server.proxy.requests.append(request)
        self.server.proxy.on_request(request)

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.server.proxy.upstream).netloc, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
        try:
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, answer.getheaders(), content
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        """Headers speak of the whole content, whatever follows."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def refuse(self, status: int, code: str, message: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        content = b"" if self.command == "HEAD" else text.encode()
        self.answer(status, [("Content-Type", "application/xml")], content)

    def reset(self) -> None:
        """Close so that the other end sees a connection reset, not an end."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The handler's files keep the socket open: this closes it under them.
            socket.socket(fileno=self.connection.detach()).close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


def operation_of(method: str, target: str) -> tuple[str, str]:
    """("GET", "path/of/object") and the like; the operations on a bucket are LIST, DELETE and BUCKET."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = unquote(parts.path).lstrip("/").partition("/")[2]
    if method == "POST":
        return ("DELETE" if "delete" in query else "MULTIPART"), key
    if "uploadId" in query and method == "PUT":
        return "PART", key
    if not key:
        return ("LIST" if method == "GET" else "BUCKET"), query.get("prefix", [""])[0]
    return method, key


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """The URL of an S3 server over HTTP in this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
