"""Who is lost: a line that closes says that a process has ended, and only a node that nobody finds is lost."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from samestep.slurm.controller import dead
from samestep.slurm.link import Hub, Line


@contextlib.contextmanager
def connected(nodes: list[str], silent: int = 0, dead: str = "") -> Iterator[tuple[Hub, list[Line]]]:
    """A hub with a line to each of `nodes`, but for the last `silent`; whoever asks is told that those in `dead` are."""
    hub = Hub(nodes, lambda asked: set(asked) & set(dead))
    reporting = nodes[: len(nodes) - silent]
    lines = [Line.to("127.0.0.1", hub.port) for _ in reporting]
    try:
        for node, line in zip(reporting, lines, strict=True):
            line.send(node=node, token=hub.token, step="0")
        while len(hub.lines) < len(reporting):
            hub.listen(0.1)
        yield hub, lines
    finally:
        hub.close()
        for line in lines:
            line.connection.close()


def test_a_closed_line_is_a_lost_node_only_where_nobody_answers() -> None:
    with connected(["a", "b", "c"], dead="ac") as (hub, lines):
        lines[0].send(ended=0)
        for line in lines:
            line.connection.close()
        while not hub.is_over:
            hub.listen(0.1)
        assert (hub.ended, hub.lost, hub.missing) == ({"a": 0, "b": 1}, ["c"], [])


def test_a_node_that_never_reported_is_asked_for_and_not_judged_while_it_lives() -> None:
    with connected(["a", "b", "c"], silent=2, dead="c") as (hub, _):
        hub.listen(0.1)
        assert hub.lost == []
        hub._doubted -= 11
        hub.listen(0.1)
        assert (hub.ended, hub.lost, hub.missing) == ({}, ["c"], ["a", "b"])


def test_what_several_ranks_refuse_in_the_same_words_is_kept_once() -> None:
    with connected(["a", "b"]) as (hub, lines):
        for line in lines:
            line.send(ended=2, lines=["task: no", "lr: no"])
        while not hub.is_over:
            hub.listen(0.1)
        assert hub.refused == ["task: no", "lr: no"]


def test_a_node_is_answered_once_the_script_has_heard_of_it() -> None:
    with connected(["a"]) as (_, [line]):
        while not line.is_answered:
            line.receive()
    here, there = socket.socketpair()
    there.close()
    with here:
        line = Line(here)
        line.receive()
        assert line.is_silent
        assert not line.is_answered


def test_a_slurmd_that_waits_for_words_lives_and_one_that_hangs_up_or_is_not_there_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as living, socket.create_server(("127.0.0.1", 0)) as dying:
        threading.Thread(target=lambda: dying.accept()[0].close()).start()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            nowhere = gone.getsockname()
        places = {"living": living.getsockname(), "dying": dying.getsockname(), "gone": nowhere}
        assert dead(["living", "dying", "gone", "unknown"], places) == {"dying", "gone"}
