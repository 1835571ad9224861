"""Who is lost: a line that closes says that a process has ended, and only a node that nobody finds is lost."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samestep.slurm import controller, job, link
from samestep.slurm.controller import Job, dead
from samestep.slurm.link import Hub, Line


@contextlib.contextmanager
def connected(nodes: list[str], silent: int = 0, dead: str = "") -> Iterator[tuple[Hub, list[Line]]]:
    """A hub with a line to each of `nodes`, but for the last `silent`; whoever asks is told that those in `dead` are."""
    hub = Hub(nodes, lambda asked: set(asked) & set(dead), "127.0.0.1")
    reporting = nodes[: len(nodes) - silent]
    lines = [Line.to("127.0.0.1", hub.port, hub.token) for _ in reporting]
    try:
        for node, line in zip(reporting, lines, strict=True):
            line.send(node=node, step="0")
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


STRANGE = {
    "a number": b"5\n",
    "an empty line": b"\n",
    "brackets without end": b"[" * 100_000,
    "a wrong token": b"0" * 32 + b"\n",
    "a wrong token and a node": b"0" * 32 + b'\n{"node": "b", "step": "0"}\n',
    "bytes that are no text": bytes(range(256)) * 10,
}


@pytest.mark.parametrize("said", STRANGE.values(), ids=STRANGE.keys())
def test_a_stranger_ends_nothing_and_is_hung_up_on(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_TOKEN_WITHIN_S", 0.5)
    with connected(["a", "b"], silent=1) as (hub, [line]):
        with socket.create_connection(("127.0.0.1", hub.port), timeout=20) as stranger:
            with contextlib.suppress(ConnectionError):
                stranger.sendall(said)
            while "b" not in hub.lines and (hub._unknown or not hub_has_hung_up(stranger)):
                hub.listen(0.1)
        assert hub.lines.keys() == {"a"}
        line.send(ended=0)
        while not hub.ended:
            hub.listen(0.1)
        assert (hub.ended, hub.lost) == ({"a": 0}, [])


def hub_has_hung_up(stranger: socket.socket) -> bool:
    stranger.settimeout(0.05)
    try:
        return stranger.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_of_a_stranger_no_more_is_read_than_a_token_has() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"x" * 1000)
        line = Line(there)
        assert line.token() == b"x" * 33
        assert len(there.recv(2000)) == 1000 - 33


def test_strangers_who_say_nothing_keep_no_node_out_and_are_few() -> None:
    with connected(["a", "b"], silent=1) as (hub, _), contextlib.ExitStack() as open_ones:
        for _ in range(100):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", hub.port), timeout=20))
            hub.listen(0)
        assert len(hub._unknown) <= 2 + 16
        late = Line.to("127.0.0.1", hub.port, hub.token)
        open_ones.callback(late.connection.close)
        late.send(node="b", step="0")
        while "b" not in hub.lines:
            hub.listen(0.1)


@pytest.mark.parametrize(
    "said", [b"5\n", b"[" * 100_000 + b"\n", b'{"a":' + b"[" * 9 + b"]" * 9 + b"}\n", b"x" * (1 << 19), b"\xff\n"],
    ids=["a number", "deep", "nested", "without end", "no text"],
)  # fmt: skip
def test_a_node_that_says_something_else_is_heard_no_more(said: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        line = Line(there)
        sending = threading.Thread(target=send_what_is_taken, args=(here, said))
        sending.start()
        while line.is_open:
            line.receive()
        assert len(line._received) == 0
        there.shutdown(socket.SHUT_RDWR)
        sending.join()


def send_what_is_taken(here: socket.socket, said: bytes) -> None:
    with contextlib.suppress(OSError):
        here.sendall(said)


def test_lines_that_come_in_parts_are_whole() -> None:
    here, there = socket.socketpair()
    with here, there:
        line = Line(there)
        here.sendall(b'{"ended": 2, "lines": ["a')
        assert line.receive() == []
        here.sendall(b'"]}\n{}\n{"ended"')
        assert line.receive() == [{"ended": 2, "lines": ["a"]}, {}]
        assert line.is_open


def test_the_token_is_in_no_argument_and_in_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What srun is started with, and all that lies in the folder of runs while it is under way."""
    seen: dict[str, Any] = {}

    def start(words: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        seen.update(words=words, env=env, files=[path.read_text() for path in tmp_path.rglob("*") if path.is_file()])
        raise KeyboardInterrupt

    (tmp_path / "case.yaml").write_text(
        "task: regression\nglobal_batch_size: 8\nmicro_batch_size: 8\nsteps: 1\noptimizer: {name: sgd, lr: 1}\n"
    )
    here = Job("7", ("n1",), "n1", {"n1": 1}, None, {})
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(controller, "ask", lambda *words: "")
    monkeypatch.setattr(job, "read_job", lambda: here)
    monkeypatch.setattr(signal, "signal", lambda *words: None)
    monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        job.job("case.yaml", "one", None, ())
    token = seen["env"]["SAMESTEP_TOKEN"]
    assert len(token) == 32
    assert "SLURM_EXPORT_ENV" not in seen["env"]  # or the steps would get nothing of it
    assert not [text for text in [*seen["words"], *seen["files"]] if token in text]


def test_the_hub_of_one_machine_listens_on_the_loopback_alone() -> None:
    with connected(["a"]) as (hub, _):
        assert hub._server.getsockname()[0] == "127.0.0.1"


def test_a_slurmd_that_waits_for_words_lives_and_one_that_hangs_up_or_is_not_there_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as living, socket.create_server(("127.0.0.1", 0)) as dying:
        threading.Thread(target=lambda: dying.accept()[0].close()).start()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            nowhere = gone.getsockname()
        places = {"living": living.getsockname(), "dying": dying.getsockname(), "gone": nowhere}
        assert dead(["living", "dying", "gone", "unknown"], places) == {"dying", "gone"}
