"""The line between a job's script and its nodes: who lives, who is lost, and what each launcher ended with.

SLURM notices a dead node after SlurmdTimeout, five minutes by default; a line that is silent for six seconds is noticed here.

A node's first line is the start's token. Of a stranger nothing else is read, and what it sends is bounded in every way.
"""

from __future__ import annotations

import contextlib
import hmac
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
_TOKEN_BYTES = 16
_TOKEN_WITHIN_S = 10.0  # of a connection that has not said it
_STRANGERS = 16  # connections beyond the nodes' own that may be about to say it
_LONGEST_LINE = 1 << 18  # bytes; a rank's refusal in many lines is the longest
_DEEPEST = 3  # an object with lists in it


class Line:
    """One end of a connection over which JSON objects travel, one a line; a beat is an empty one.

    Whoever sends anything else, or a line without an end, is heard no more.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.began = self.heard = time.monotonic()
        self.is_open = True
        self.is_answered = False  # whether anything has ever come in
        self.is_known = False  # whether it has said the token
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
        self._read(_LONGEST_LINE)
        *lines, self._received = self._received.split(b"\n")
        said = [_words(line) for line in lines]
        if None in said or len(self._received) >= _LONGEST_LINE:
            self.is_open, self._received = False, b""
        return [words for words in said if words is not None]

    def token(self) -> bytes | None:
        """A stranger's first words, as long as a token and its line's end; None until they are here. Nothing more is read."""
        whole = 2 * _TOKEN_BYTES + 1
        self._read(whole)
        if len(self._received) < whole:
            return None
        token, self._received = self._received, b""
        return token.removesuffix(b"\n")

    def _read(self, most: int) -> None:
        """Until so many bytes are waiting to be looked at, or there is no more."""
        try:
            while left := most - len(self._received):
                part = self.connection.recv(min(left, 65536))
                if not part:
                    self.is_open = False
                    return
                self._received += part
                self.heard = time.monotonic()
                self.is_answered = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_open = False

    @property
    def is_silent(self) -> bool:
        return not self.is_open or time.monotonic() - self.heard > _SILENT_S

    @classmethod
    def to(cls, address: str, port: int, token: str) -> Line:
        """A node's end, which says the token first. Raises OSError if nobody listens there."""
        line = cls(socket.create_connection((address, port), timeout=20))
        line.connection.sendall(token.encode() + b"\n")
        return line


def _words(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it is no JSON object, or one that is deep."""
    try:
        words = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return words if isinstance(words, dict) and _depth(words) <= _DEEPEST else None


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


class Hub:
    """The job's end: a line to each node of one start.

    Args:
        nodes: those that are to report.
        dead: finds out, within a few seconds, which of some nodes do not live.
        address: this machine's, by which the nodes reach it; no other is listened on.
    """

    def __init__(self, nodes: list[str], dead: Callable[[list[str]], set[str]], address: str) -> None:
        self._server = socket.create_server((address, 0), backlog=len(nodes) + _STRANGERS)
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self.token = secrets.token_hex(_TOKEN_BYTES)  # whoever reaches the port may come: another job's node, or anybody
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
        self._let_in()
        for node, line in self.lines.items():
            self._take(node, line.receive())
            line.beat()
        self.find_out(self._doubtful())

    def _let_in(self) -> None:
        """Take new connections, and hang up on strangers who say something else, say nothing, or are too many."""
        most = len(self._nodes) + _STRANGERS
        with contextlib.suppress(OSError):  # nobody more, or one that has left again
            for _ in range(most):
                self._unknown.append(Line(self._server.accept()[0]))
        for line in list(self._unknown):
            self._meet(line)
        for line in self._unknown[:-most]:  # the oldest: a node says the token at once
            self._hang_up(line)

    def _meet(self, line: Line) -> None:
        """Hear a connection that has not said who it is: first the token and nothing else, then its node."""
        if not line.is_known and (token := line.token()) is not None:
            line.is_known = hmac.compare_digest(token, self.token.encode())
            line.is_open = line.is_known
        said = line.receive() if line.is_known else []
        if said and said[0].get("node") in self._nodes:
            first, *more = said
            self.lines[first["node"]], self.step = line, str(first.get("step"))
            self._unknown.remove(line)
            self._take(first["node"], more)
        elif said or not line.is_open or time.monotonic() - line.began > _TOKEN_WITHIN_S:
            self._hang_up(line)

    def _hang_up(self, line: Line) -> None:
        self._unknown.remove(line)
        line.connection.close()

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
