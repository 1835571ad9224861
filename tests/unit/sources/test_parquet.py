"""Rows of Parquet files that need not fit on the disk, here and behind a server that has its troubles."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from range_server import RangeServer

from samestep import Parquet
from samestep.batches import Batches, Plan
from samestep.control import NoBoard, Watchdog
from samestep.control.store_wait import store_wait
from samestep.errors import TrainingError, UsageError
from samestep.session import read_split
from samestep.session.data import notes_on_data
from samestep.sources import differences, doubt, identity, make_rows, order_of
from samestep.sources.parquet import store
from samestep.task import Task


class Plain(Task):
    pass


class Changed(Task):
    def transform(self, row: dict[str, Any], rng: Any) -> dict[str, Any]:
        return row


@pytest.fixture(autouse=True)
def _at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(store, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(store_wait, "_until", memoryview(bytearray(16)).cast("d"))


def write(path: Path, rows: int, first: int = 0, group: int = 10, **more: Any) -> Path:
    rng = np.random.default_rng(first)
    columns = {
        "x": pa.array(rng.standard_normal((rows, 3)).astype(np.float32).tolist(), pa.list_(pa.float32())),
        "n": pa.array(np.arange(first, first + rows)),
        **more,
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Groups of 1 to 50 rows, a file without rows, and a writer's note."""
    for number, (rows, group) in enumerate(((37, 10), (0, 10), (50, 50), (3, 1), (20, 7))):
        write(tmp_path / "data" / f"{number}.parquet", rows, sum((37, 0, 50, 3, 20)[:number]), group)
    (tmp_path / "data" / "_metadata.parquet").write_text("no rows")
    return tmp_path / "data"


def test_rows_are_those_of_the_files_in_their_order(folder: Path) -> None:
    whole = pq.ParquetDataset([str(path) for path in sorted(folder.glob("[0-9]*"))]).read().to_pylist()
    rows = Parquet(folder, window=2)
    assert len(rows) == 110
    for number in (0, 9, 10, 36, 37, 86, 87, 89, 90, 109):
        assert rows[number]["n"] == whole[number]["n"] == number
        assert rows[number]["x"].dtype == np.float32
        assert rows[number]["x"].tolist() == whole[number]["x"]
    with pytest.raises(IndexError):
        rows[110]
    assert len(Parquet([folder / "0.parquet", str(folder / "[23].parquet")])) == 90
    assert Parquet(folder, columns=["n"])[100].keys() == {"n"}


@pytest.mark.parametrize("task", [Plain(), Changed()], ids=["columns", "rows"])
def test_each_row_comes_once_an_epoch_as_it_lies_in_the_file(folder: Path, task: Task) -> None:
    source = Parquet(folder, window=3)
    rows, order, one_by_one = make_rows(source, task, 0, torch.float32), order_of(source, 7), Parquet(folder)
    for epoch in (0, 1):
        numbers = [order.rows(epoch, start, min(start + 8, 110)) for start in range(0, 110, 8)]
        assert sorted(np.concatenate(numbers).tolist()) == list(range(110))
        for wanted in numbers:
            batch = rows.read(wanted, epoch)
            assert batch["n"].tolist() == wanted.tolist()
            assert batch["x"].dtype == torch.float32
            assert batch["x"].tolist() == [one_by_one[int(number)]["x"].tolist() for number in wanted]


def test_values_of_any_type_are_a_rows_own_whatever_is_read_beside_it(tmp_path: Path) -> None:
    more = {
        "uneven": pa.array([[1, 2], [3]] * 5, pa.list_(pa.int16())),
        "square": pa.array([[[1.0], [2.0]]] * 10, pa.list_(pa.list_(pa.float64()))),
        "text": pa.array(["a", None] * 5),
        "some": pa.array([1, None] * 5, pa.int8()),
        "flag": pa.array([True, False] * 5),
        "image": pa.array([{"bytes": b"\x00", "path": "p"}] * 10),
    }
    source = Parquet(write(tmp_path / "all.parquet", 10, **more))
    row = source[0]
    assert (row["uneven"].dtype, row["uneven"].tolist()) == (np.int16, [1, 2])
    assert (row["square"].dtype, row["square"].shape) == (np.float64, (2, 1))
    assert (row["text"], source[1]["text"], source[1]["some"]) == ("a", None, None)
    assert (row["some"].dtype, row["flag"].dtype, row["image"]) == (np.int8, np.bool_, {"bytes": b"\x00", "path": "p"})
    refused = {
        "uneven": "rows of shapes (2,) (row 0) and (1,) (row 1)",
        "text": "holds str in row 0",
        "some": "is null in row 1",
    }
    for name, words in refused.items():
        with pytest.raises(UsageError, match=re.escape(f"data: column {name} {'has ' if name == 'uneven' else ''}{words}")):
            make_rows(Parquet(tmp_path / "all.parquet", columns=[name]), Plain(), 0, torch.float32).read(np.arange(3), 0)
    found = make_rows(Parquet(tmp_path / "all.parquet", columns=["square", "flag"]), Plain(), 0, torch.bfloat16).read(
        np.arange(3), 0
    )
    assert (found["square"].dtype, found["flag"].tolist()) == (torch.bfloat16, [True, False, True])
    uneven_in_one_group = pa.array([[row] * (3 if row == 5 else 2) for row in range(20)], pa.list_(pa.int16()))
    rows = make_rows(Parquet(write(tmp_path / "two.parquet", 20, pair=uneven_in_one_group)), Plain(), 0, torch.float32)
    assert rows.read(np.array([0, 12]), 0)["pair"].tolist() == [[0, 0], [12, 12]]


def test_what_cannot_be_rows_is_one_line(folder: Path, tmp_path: Path) -> None:
    one, other = write(tmp_path / "a" / "1.parquet", 5), write(tmp_path / "a" / "2.parquet", 5, y=pa.array([1] * 5))
    write(tmp_path / "b" / "1.parquet", 5, y=pa.array([1.0] * 5))
    write(tmp_path / "b" / "2.parquet", 5, y=pa.array([1] * 5))
    (tmp_path / "none.parquet").write_bytes(b"no such thing, but long enough")
    (tmp_path / "half.parquet").write_bytes(b"PAR1" + b"\xff\xff\x00\x00PAR1")
    empty = write(tmp_path / "empty.parquet", 0)
    cases: list[tuple[str, Callable[[], Parquet]]] = [
        (f"{other} has a column y, and {one} has none; write columns=['x', 'n']", lambda: Parquet(tmp_path / "a")),
        ("column y is double in ", lambda: Parquet(tmp_path / "b")),
        (f"{one} has no column z; it has x, n", lambda: Parquet(one, columns=["z"])),
        ("none.parquet is no Parquet file; leave it out", lambda: Parquet(tmp_path / "none.parquet")),
        ("half.parquet is no whole Parquet file", lambda: Parquet(tmp_path / "half.parquet")),
        ("empty.parquet have no rows", lambda: Parquet(empty)),
        ("gone.parquet gives FileNotFoundError", lambda: Parquet(tmp_path / "gone.parquet")),
        ("found no Parquet file at", lambda: Parquet(tmp_path / "*.par")),
        ("found no path; write one", lambda: Parquet([])),
        ("Protocol not known: nowhere", lambda: Parquet("nowhere://x/a.parquet")),
        ("cache: found 'much'; write a number of bytes, or \"2GB\"", lambda: Parquet(one, cache="much")),
        ("cache: found 100B, and two windows of 11 row groups come to ", lambda: Parquet(folder, cache=100)),
        ("window: found 0", lambda: Parquet(one, window=0)),
    ]
    for words, make in cases:
        with pytest.raises(UsageError, match=re.escape(words)) as refused:
            make()
        assert len(refused.value.lines) == 1
        assert str(refused.value).startswith("data: ")
    assert len(Parquet(tmp_path / "a", columns=["x", "n"])) == 10


def used(source: Parquet) -> int:
    total = 0
    for file in source._folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has made room meanwhile
            total += file.stat().st_size if file.suffix in (".arrow", ".half") else 0
    return total


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_disk_holds_no_more_than_was_allowed_and_the_next_window_before_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "big.parquet", 4000, group=100)  # 40 groups of 2 to 4 KB decoded
    source = Parquet(tmp_path / "big.parquet", cache="50KB", window=4)
    rows, order = make_rows(source, Plain(), 0, torch.float32), source.order(0)
    seen: list[int] = []
    for start in range(0, 4000, 50):
        seen += rows.read(order.rows(0, start, start + 50), 0)["n"].tolist()
        assert used(source) <= 50_000
        if start % 400 == 0:
            wait_for(lambda: all((source._folder / f"{group}.arrow").exists() for group in order.upcoming()))
    assert sorted(seen) == list(range(4000))
    assert len(source._opened()._tables) <= 10


def test_footers_are_read_once_and_row_groups_once_for_all_processes_of_a_machine(folder: Path) -> None:
    with RangeServer(folder) as server:
        urls = [f"{server.url}/{number}.parquet" for number in range(5)]
        Parquet(urls)
        first = [asked for _, _, asked in server.requests if asked]
        assert len(first) == 5
        source, other = Parquet(urls), Parquet(urls)
        assert source[36]["n"] == other[36]["n"] == 36
        wait_for(lambda: not source._opened().ahead._threads and not other._opened().ahead._threads)
        fetched = [asked for _, _, asked in server.requests if asked][len(first) :]
        assert len(fetched) == len(set(fetched))
        child = os.fork()
        if child == 0:  # a loader process, say
            os._exit(0 if source[3]["n"] == 3 and source[109]["n"] == 109 else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("fault", ["429", "503", "drop", "short"])
def test_a_store_in_trouble_is_asked_again_and_named_once(folder: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with RangeServer(folder) as server:
        source = Parquet([f"{server.url}/{number}.parquet" for number in range(5)], window=1)
        server.faults.extend([fault, fault, "", fault])
        assert [source[number]["n"] for number in range(0, 110, 5)] == list(range(0, 110, 5))
        other = Parquet(f"{server.url}/2.parquet")
        server.faults.append(fault)
        assert other[0]["n"] == 37
        assert not server.faults
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    words = {"429": "answers 429", "503": "answers 503", "drop": "gives ClientPayloadError", "short": "gives EOFError: "}
    assert said[0].startswith("samestep: data: http://127.0.0.1:")
    assert words[fault] in said[0]
    assert said[0].endswith("it is asked again, for up to 900 s")
    assert store_wait.is_on


def test_a_store_is_asked_again_as_late_as_it_wishes(folder: Path) -> None:
    with RangeServer(folder) as server:
        source = Parquet(f"{server.url}/2.parquet")
        server.retry_after = "1"
        server.faults.append("429")
        began = time.monotonic()
        assert source[0]["n"] == 37  # in the file's only row group, which nobody reads ahead
        assert time.monotonic() - began >= 1


def test_patience_has_an_end_and_what_waiting_cannot_mend_is_told_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RangeServer(folder) as server:
        source = Parquet(f"{server.url}/0.parquet")
        monkeypatch.setattr(store, "PATIENCE_S", 0.1)
        server.faults.extend(["503"] * 1000)
        with pytest.raises(
            TrainingError, match=r"0.parquet answers 503, and has for 0 s; the same line goes on once it can be"
        ):
            source[0]
        server.faults.clear()
        monkeypatch.setattr(store, "PATIENCE_S", 900)
        server.faults.extend(["403"] * 1000)
        with pytest.raises(UsageError, match=r"0.parquet answers 403; write a path or a URL that can be read from here"):
            source[0]
        server.faults.clear()
        with pytest.raises(UsageError, match=r"gone.parquet answers 404; write"):
            Parquet(f"{server.url}/gone.parquet")
    monkeypatch.setattr(store, "START_PATIENCE_S", 0.1)
    with pytest.raises(TrainingError, match=r"0.parquet gives FileNotFoundError.*and has for 0 s"):
        Parquet("http://127.0.0.1:9/0.parquet")  # where nobody listens


def test_a_file_that_changes_or_vanishes_after_the_start_is_refused_by_name(folder: Path) -> None:
    with RangeServer(folder) as server:
        for place in (str(folder / "2.parquet"), f"{server.url}/2.parquet"):
            write(folder / "2.parquet", 50, 37)
            source = Parquet(place, columns=["n"])
            write(folder / "2.parquet", 50, 38)
            with pytest.raises(
                UsageError, match=r"2.parquet has changed since the start \(\d+ bytes, .*; put it back, or start"
            ):
                source[3]
            (folder / "2.parquet").unlink()
            with pytest.raises(UsageError, match=r"2.parquet has vanished since the start; put it back"):
                source[3]


def test_what_cannot_be_decoded_is_asked_for_again_and_then_told(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.parquet", 100)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"bad.parquet: row group 0 cannot be decoded: "):
        Parquet(path)[0]


def test_the_file_with_other_rows_is_named_at_the_next_start_and_a_copy_is_none(folder: Path) -> None:
    before, other_window = identity(Parquet(folder)), identity(Parquet(folder, window=2))
    assert differences(before, identity(Parquet(folder)), "train") == []
    os.utime(folder / "2.parquet")
    copied = identity(Parquet(folder))
    assert differences(before, copied, "train") == []
    words = 'data: "train": the file 2.parquet has the size and the footer that it had, but another time of change or ETag; '
    assert (doubt(before, copied, "train") or "").startswith(words)
    assert doubt(before, before, "train") is None
    write(folder / "2.parquet", 50, 38)
    (line,) = differences(before, identity(Parquet(folder)), "train")
    assert re.match(
        r'data: "train" had the file 2.parquet with the checksum \w+ and has 2.parquet with \w+; give data\(\)', line
    )
    (line,) = differences(before, other_window, "train")
    assert line.startswith('data: "train" had the format samestep.Parquet in windows of 11 row groups and has ')
    write(folder / "5.parquet", 5)
    assert differences(before, identity(Parquet(folder)), "train")[0].startswith('data: "train" had 110 rows and has 115')


def test_a_signature_in_an_address_is_no_part_of_the_data_and_is_never_printed(folder: Path, tmp_path: Path) -> None:
    with RangeServer(folder) as server:
        one, other = (Parquet([str(folder / "0.parquet"), f"{server.url}/2.parquet?key={key}"]) for key in ("secret", "other"))
        assert one[40]["n"] == other[40]["n"] == 40
        assert one._folder == other._folder
        found = identity(one)
        assert differences(found, identity(other), "train") == []
        assert doubt(found, identity(other), "train") is None
        assert "secret" not in str(found)
        with pytest.raises(UsageError) as refused:
            Parquet(f"{server.url}/gone.parquet?key=secret")
        assert "secret" not in str(refused.value)


def test_of_very_many_files_runs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samestep.sources.parquet.source._LISTED", 3)
    for number in range(7):
        write(tmp_path / "many" / f"{number}.parquet", 2, 2 * number)
    before = identity(Parquet(tmp_path / "many"))
    assert [name for name, *_ in before["files"]] == [
        "0.parquet to 2.parquet",
        "3.parquet to 5.parquet",
        "6.parquet to 6.parquet",
    ]
    write(tmp_path / "many" / "4.parquet", 2, 99)
    (line,) = differences(before, identity(Parquet(tmp_path / "many")), "train")
    assert "had the file 3.parquet to 5.parquet with the checksum " in line


def test_the_start_says_what_is_read_and_where_it_is_kept(folder: Path) -> None:
    facts = {"train": identity(Parquet(folder, cache="3MB")), "eval": None}
    (note,) = notes_on_data(facts, facts)
    assert note.startswith("data: train: 5 files, 110 rows in 11 row groups; up to 3MB of them on each machine's disk, in ")


def test_row_groups_of_sources_that_nobody_uses_any_more_are_cleared_away(folder: Path) -> None:
    old, own = Parquet(folder / "0.parquet"), Parquet(folder / "2.parquet")
    old[0], own[0]
    wait_for(lambda: not old._opened().ahead._threads and not own._opened().ahead._threads)
    os.utime(old._folder / "used", (0, 0))
    os.utime(own._folder / "used", (0, 0))
    Parquet(folder / "2.parquet")
    assert not old._folder.exists()
    assert (own._folder / "0.arrow").exists()
    assert old[20]["n"] == 20  # whoever was not so unused reads on


@pytest.mark.parametrize("wanted", [False, True])
def test_the_watchdog_waits_for_whoever_asks_a_store_again(tmp_path: Path, wanted: bool) -> None:
    said: list[str] = []
    watch = Watchdog(0.1, 0, 1, "here", NoBoard(), tmp_path / "log", lambda paragraph, culprits: said.append(paragraph))
    if wanted:
        store_wait.expect(60)
    watch.step(0)  # an audit reads rows too
    assert watch._shown_phase == ("reading data, and the store has to be asked again" if wanted else "beginning a step")
    watch.at("reading data")
    assert watch._shown_phase == ("reading data, and the store has to be asked again" if wanted else "reading data")
    watch.at("computing")
    assert watch._shown_phase == "computing"


class Streamed(Task):
    stream: Any

    def data(self, split: str) -> Any:
        return self.stream


def test_a_stream_of_parquet_files_is_told_what_to_write_instead(folder: Path) -> None:
    def stream(*names: str) -> Any:
        files = [str(folder / f"{name}.parquet") for name in names]
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=str(folder / "c"))

    first = str(folder / "0.parquet")
    cases = [
        (stream("0"), f"returned IterableDataset; return samestep.Parquet('{first}'), and write what map() does as transform("),
        (stream("0", "2").shuffle(seed=1).map(dict), f"return samestep.Parquet(['{first}', '{folder / '2.parquet'}']), and"),
        (stream("0", "2", "3", "4"), f"return samestep.Parquet(PATHS) of its 4 files, {first} to {folder / '4.parquet'}, and"),
        (
            datasets.IterableDatasetDict({"train": stream("0")}),
            f"returned IterableDatasetDict; return samestep.Parquet('{first}')",
        ),
        (
            datasets.Dataset.from_dict({"x": [1]}).to_iterable_dataset(),
            "return a datasets.Dataset, loaded without streaming=True, or",
        ),
    ]
    for found, words in cases:
        with pytest.raises(UsageError, match=re.escape(words)):
            read_split(Streamed(stream=found), 0, "train")


def test_what_a_loader_process_refuses_is_one_line_too(folder: Path) -> None:
    source = Parquet(folder / "2.parquet")
    rows, plan = make_rows(source, Plain(), 0, torch.float32), Plan(order_of(source, 0), 10, 5, False)
    batches = Batches(rows, plan, [0, 1], torch.device("cpu"), 0, 0, 5, workers=1)
    write(folder / "2.parquet", 50, 38)
    with pytest.raises(UsageError, match=r"^data: .*2.parquet has changed since the start [^\n]*$"):
        next(batches.step(0))
    batches.close()


def test_a_folder_that_cannot_be_written_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("samestep.sources.parquet.footers.write_atomically", refuse)
    with pytest.raises(UsageError, match=r"Permission denied\), .*; set HF_DATASETS_CACHE to a folder that can be written"):
        Parquet(folder / "0.parquet")
