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
from collections.abc import Callable
from typing import Any

_BEAT_S = 1.0
_SILENT_S = 6.0
_UNHEARD_S = 60.0  # a node whose Python is slow to come is not lost yet
_DOUBTED_EVERY_S = 10.0  # it is asked for, meanwhile


class Line:
    """One end of a connection over which JSON objects travel, one a line; a beat is an empty one."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.heard = time.monotonic()
        self.is_open = True
        self.is_answered = False  # whether anything has ever come in
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
        try:
            while part := self.connection.recv(65536):
                self._received += part
                self.heard = time.monotonic()
                self.is_answered = True
            self.is_open = False
        except BlockingIOError:
            pass
        except OSError:
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
        dead: finds out, within a few seconds, which of some nodes do not live.
    """

    def __init__(self, nodes: list[str], dead: Callable[[list[str]], set[str]]) -> None:
        self._server = socket.create_server(("", 0), backlog=len(nodes))
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self.token = secrets.token_hex(16)  # another job's node may come to this port
        self.lines: dict[str, Line] = {}
        self.ended: dict[str, int] = {}
        self.step: str | None = None
        self.refusals: list[str] = []  # of nodes
        self.refused: list[str] = []  # by ranks, in the lines they said it in
        self._nodes, self._unknown, self._begun = nodes, list[Line](), time.monotonic()
        self._find_dead, self._dead, self._doubted = dead, set[str](), self._begun

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
        self.find_out(self._doubtful())

    def _take(self, node: str, said: list[dict[str, Any]]) -> None:
        for words in said:
            if "refused" in words:
                self.refusals.append(words["refused"])
            if "ended" in words:
                self.ended[node] = words["ended"]
                self.refused += [line for line in words.get("lines", []) if line not in self.refused]

    def _open(self) -> list[Line]:
        return [line for line in (*self.lines.values(), *self._unknown) if line.is_open]

    @property
    def is_over(self) -> bool:
        """Whether every node that lives has ended."""
        return bool(self.lines) and all(node in self.ended for node in self._nodes if node not in self.lost)

    @property
    def missing(self) -> list[str]:
        """Nodes that have not ended and are not lost."""
        return [node for node in self._nodes if node not in self.ended and node not in self.lost]

    @property
    def lost(self) -> list[str]:
        """Nodes that are known to be dead, those that have fallen silent, and those that never reported while others did."""
        late = bool(self.lines) and time.monotonic() - self._begun > _UNHEARD_S
        silent = {node for node in self._nodes if (self._is_silent(node) if node in self.lines else late)}
        return [node for node in self._nodes if node not in self.ended and node in self._dead | silent]

    def _is_silent(self, node: str) -> bool:
        return self.lines[node].is_open and self.lines[node].is_silent

    def _doubtful(self) -> list[str]:
        """A line that is closed may mean a dead node or a killed process; one that does not come, a dead node or a slow one."""
        asks = time.monotonic() - self._doubted > _DOUBTED_EVERY_S
        self._doubted = time.monotonic() if asks else self._doubted
        return [node for node in self.missing if (not self.lines[node].is_open if node in self.lines else asks)]

    def find_out(self, nodes: list[str]) -> None:
        """Which of `nodes` are lost; on the others what had reported from there has been killed."""
        dead = self._find_dead(nodes) if nodes else set()
        self._dead |= dead
        self.ended |= {node: 1 for node in nodes if node not in dead and node in self.lines}

    def tell_lost(self, nodes: list[str]) -> None:
        for line in self._open():
            line.send(lost=nodes)

    def close(self) -> None:
        self._server.close()
        for line in (*self.lines.values(), *self._unknown):
            line.connection.close()
