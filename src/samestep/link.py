"""The line between a job's script and its nodes: who lives, who is lost, and what each launcher ended with.

SLURM notices a dead node after SlurmdTimeout, five minutes by default; a line that is silent for six seconds is noticed here.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import time
from typing import Any

_BEAT_S = 1.0
_SILENT_S = 6.0
_UNHEARD_S = 60.0  # a node whose Python is slow to come is not lost yet


class Line:
    """One end of a connection over which JSON objects travel, one a line; a beat is an empty one."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.heard = time.monotonic()
        self.is_open = True
        self._received = b""
        self._beaten = 0.0

    def send(self, **words: Any) -> None:
        try:
            self.connection.sendall(json.dumps(words).encode() + b"\n")
        except OSError:  # closed, or full because nobody reads there
            self.is_open = False

    def beat(self) -> None:
        if time.monotonic() - self._beaten >= _BEAT_S:
            self._beaten = time.monotonic()
            self.send()

    def receive(self) -> list[dict[str, Any]]:
        """What has come in since, without waiting."""
        with contextlib.suppress(BlockingIOError):
            try:
                while part := self.connection.recv(65536):
                    self._received += part
                    self.heard = time.monotonic()
                self.is_open = False
            except ConnectionError:
                self.is_open = False
        *lines, self._received = self._received.split(b"\n")
        with contextlib.suppress(ValueError):
            return [words for line in lines if (words := json.loads(line))]
        return []

    @property
    def is_silent(self) -> bool:
        return not self.is_open or time.monotonic() - self.heard > _SILENT_S

    @classmethod
    def to(cls, address: str, port: int) -> Line:
        """Raises OSError if nobody listens there."""
        return cls(socket.create_connection((address, port), timeout=20))


class Hub:
    """The job's end: a line to each node of one start.

    Args:
        nodes: those that are to report.
    """

    def __init__(self, nodes: list[str]) -> None:
        self._server = socket.create_server(("", 0), backlog=len(nodes))
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self.token = secrets.token_hex(16)  # another job's node may come to this port
        self.lines: dict[str, Line] = {}
        self.ended: dict[str, int] = {}
        self.step: str | None = None
        self.refusals: list[str] = []
        self._nodes, self._unknown, self._begun = nodes, list[Line](), time.monotonic()

    def listen(self, wait_s: float) -> None:
        """Take what comes in, for at most `wait_s` seconds, and send a beat to everyone."""
        select.select([self._server, *(line.connection for line in self._open())], [], [], wait_s)
        with contextlib.suppress(BlockingIOError):
            self._unknown.append(Line(self._server.accept()[0]))
        for line in list(self._unknown):
            first, *more = line.receive() or [{}]
            if first.get("token") == self.token:
                self.lines[first["node"]], self.step = line, first["step"]
                self._unknown.remove(line)
                self._take(first["node"], more)
        for node, line in self.lines.items():
            self._take(node, line.receive())
            line.beat()

    def _take(self, node: str, said: list[dict[str, Any]]) -> None:
        for words in said:
            if "refused" in words:
                self.refusals.append(words["refused"])
            if "ended" in words:
                self.ended[node] = words["ended"]

    def _open(self) -> list[Line]:
        return [line for line in (*self.lines.values(), *self._unknown) if line.is_open]

    @property
    def is_over(self) -> bool:
        """Whether every node that lives has ended."""
        return bool(self.lines) and all(node in self.ended for node in self._nodes if node not in self.lost)

    @property
    def lost(self) -> list[str]:
        """Nodes whose line broke before their launcher had ended, and those that never reported while others did."""
        late = bool(self.lines) and time.monotonic() - self._begun > _UNHEARD_S
        return [
            node
            for node in self._nodes
            if node not in self.ended and (self.lines[node].is_silent if node in self.lines else late)
        ]

    def tell_lost(self, nodes: list[str]) -> None:
        for line in self._open():
            line.send(lost=nodes)

    def close(self) -> None:
        self._server.close()
        for line in (*self.lines.values(), *self._unknown):
            line.connection.close()
