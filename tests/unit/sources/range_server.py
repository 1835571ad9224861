"""A store on the loopback: a folder over HTTP, in ranges, with whatever troubles a test gives it."""

from __future__ import annotations

import http.server
import random
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/").partition("?")[0]
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        self.server.requests.append((self.command, path.name, asked))
        fault = self.server.next_fault() if asked else ""
        if fault == "slow":
            time.sleep(0.2)
        if fault.isdigit():
            self._say(int(fault), {"Content-Length": "0", "Retry-After": self.server.retry_after})
            return
        if not path.is_file():
            self._say(404, {"Content-Length": "0"})
            return
        stat, content = path.stat(), b""
        headers = {"ETag": f'"{stat.st_mtime_ns}"', "Accept-Ranges": "bytes", "Content-Length": str(stat.st_size)}
        if asked and body:
            start, _, last = asked.partition("-")
            with path.open("rb") as file:
                file.seek(int(start))
                content = file.read(int(last) + 1 - int(start))
            if fault == "short":
                content = content[: len(content) // 2]
            headers |= {"Content-Range": f"bytes {asked}/{stat.st_size}", "Content-Length": str(len(content))}
        self._say(206 if asked else 200, headers)
        if fault == "drop":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content if asked else path.read_bytes())

    def _say(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class RangeServer(http.server.ThreadingHTTPServer):
    """
    Args:
        share: of the requests for ranges that go wrong by chance: "429", "503", "drop", "short" or "slow".
    """

    daemon_threads = True

    def __init__(self, folder: Path, share: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self._share = folder, share
        self.faults: deque[str] = deque()  # for the next requests
        self.retry_after = "0"
        self.requests: list[tuple[str, str, str]] = []
        self._rng, self._lock = random.Random(1), threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def next_fault(self) -> str:
        with self._lock:
            if self.faults:
                return self.faults.popleft()
            return self._rng.choice(["429", "503", "drop", "short", "slow"]) if self._rng.random() < self._share else ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> RangeServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()
