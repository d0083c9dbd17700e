"""A dataset behind servers that fail as told: a folder by HTTP, and an S3 bucket (moto)."""

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("503", "429", "drop", "stall", "truncate", "wrong")


class Faults:
    """What goes wrong, by file name: one fault per request, in order. asked: (name, range) of every request that gets a body."""

    def __init__(self) -> None:
        self.planned: dict[str, list[str]] = defaultdict(list)
        self.asked: list[tuple[str, str]] = []
        self.released = threading.Event()
        self._lock = threading.Lock()

    def next(self, name: str, range_: str) -> str:
        with self._lock:
            self.asked.append((name, range_))
            return self.planned[name].pop(0) if self.planned[name] else ""

    def tries(self, name: str) -> int:
        return sum(asked == name for asked, _ in self.asked)

    def body(self, fault: str, content: bytes) -> Iterator[bytes]:
        """The pieces of an answer of full length that goes wrong."""
        half = len(content) // 2
        if fault == "wrong":
            yield content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            return
        yield content[:half] if fault in ("drop", "stall", "truncate") else content
        if fault == "stall":
            self.released.wait(20)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "FolderServer"

    def do_GET(self) -> None:
        name, range_ = self.path.rpartition("/")[2], self.headers.get("Range", "")
        fault = self.server.faults.next(name, range_)
        file = self.server.folder / name
        if fault.isdigit() or not file.is_file():
            self.send_error(int(fault or 404))
            return
        content = file.read_bytes()
        low, high = 0, len(content)
        if range_ and self.server.ranges:
            low, high = (int(end) for end in range_.removeprefix("bytes=").split("-"))
            content = content[low : high + 1]
        self.send_response(206 if range_ and self.server.ranges else 200)
        if fault != "truncate":
            self.send_header("Content-Length", str(len(content)))
        if fault in ("drop", "stall", "truncate"):
            self.send_header("Connection", "close")
        self.end_headers()
        for piece in self.server.faults.body(fault, content):
            self.wfile.write(piece)
            time.sleep(self.server.pause)

    def log_message(self, *args) -> None:
        pass


class FolderServer(ThreadingHTTPServer):
    """The files of a folder. ranges: whether it knows them. pause: seconds after every answer."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool = True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.ranges, self.pause, self.faults = folder, ranges, 0.0, Faults()
        self.connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self.server_port}/dataset"

    def process_request(self, request, client_address) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request, client_address) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def serving(folder: Path, ranges: bool = True) -> Iterator[FolderServer]:
    server = FolderServer(folder, ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.faults.released.set()
        server.shutdown()
        server.server_close()
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def faulty(app: Callable, faults: Faults) -> Callable:
    """A WSGI application whose GETs fail as told."""

    def call(environ, start_response):
        if environ["REQUEST_METHOD"] != "GET":
            return app(environ, start_response)
        fault = faults.next(environ["PATH_INFO"].rpartition("/")[2], environ.get("HTTP_RANGE", ""))
        if fault.isdigit():
            start_response(f"{fault} told to", [("Content-Length", "0")])
            return []
        told: list = []

        def start(status, headers, exc_info=None):
            told[:] = [status, [(key, value) for key, value in headers if fault != "truncate" or key != "Content-Length"]]

        content = b"".join(app(environ, start))
        start_response(*told)
        return faults.body(fault, content)

    return call
