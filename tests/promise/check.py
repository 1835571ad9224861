"""One drawn run, held against the oracle; `python tests/promise/check.py 'LINE'` replays a line of a failure's."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import math
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import oracle
import safetensors.torch
import yaml
from draw import ANY_NODES, ASTRAY, NODES, REFUSED_BY, SHARDS, Run, features, is_sharded, unshardable
from ranks import HERE, Ranks

_VICTIMS = (1, -15)  # how ranks may end beside one that refuses what its own micro-batch has shown; () would be stricter
_PER_STEP = ("epoch", "loss", "lr", "grad_norm", "out", "lucky", "rows")


class Broken(AssertionError):
    """A promise that was not kept."""


class Checker:
    """Runs drawn runs, one at a time, and counts what was in them."""

    def __init__(self) -> None:
        self._trainer, self._oracle = Ranks(), Ranks()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self.counts: collections.Counter[str] = collections.Counter()
        self._seen: set[str] = set()
        self.refusals: collections.Counter[str] = collections.Counter()

    def close(self) -> None:
        self._thread.shutdown()
        self._trainer.close()
        self._oracle.close()

    def check(self, run: Run) -> None:
        """Raises Broken if the run did not come to what the oracle says, and was not refused as it may be."""
        line = json.dumps(run, sort_keys=True)
        if line in self._seen:
            return
        self._seen.add(line)
        folder = Path(tempfile.mkdtemp(prefix="promise-"))
        try:
            self._check(run, folder)
        except Exception as error:
            self._seen.discard(line)  # to be seen again where it is shrunk
            words = error if isinstance(error, Broken) else traceback.format_exc()
            raise Broken(f"{words}\nreplay: python tests/promise/check.py '{line}'") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check(self, run: Run, folder: Path) -> None:
        for name in ("drawn_task.py", "drawn_parts.py"):
            shutil.copy(HERE / name, folder)
        (folder / "drawn.yaml").write_text(yaml.safe_dump(run["config"]))
        if "init" in run["config"]:
            self._oracle.ask({"folder": str(folder), "init": run["config"]})
        asked = self._thread.submit(self._oracle.ask, {"folder": str(folder), "oracle": run["config"]})
        answers = []
        starts = list(run["starts"])
        for number, start in enumerate(starts):
            answers.append(self._start(folder, start, number, run["config"]["seed"]))
            if not SHARDS.isdisjoint(start[5]) and self._cannot_shard(run, folder, answers[-1], number):
                starts[number] = start = [*start[:5], [word for word in start[5] if word not in SHARDS]]
                answers[-1] = self._start(folder, start, number, run["config"]["seed"])
            codes = set(answers[-1]["codes"])
            if codes <= {0} or (2 in codes and -9 not in codes):  # beside a killed rank, the refusal is the next start's
                break
        meant = asked.result()
        self._count(run, answers)
        if any(answer["stuck"] for answer in answers):
            raise Broken(f"a start did not end: {_words(answers[-1])}")
        last = answers[-1]
        if 2 in last["codes"]:
            self._check_refusal(run, folder, last, len(answers) - 1, meant, start)
        elif 1 in last["codes"] and _is_allowed(run, _words(last)):  # a part that no earlier micro-batch has used
            self.refusals["in the middle: " + _kind(_words(last))] += 1
            if "error" not in meant:  # the oracle went on
                rows = (folder / "runs/drawn/metrics.jsonl").read_bytes().count(b"\n")
                meant["rows"] = meant["rows"][:rows]
            _compare(folder, run, meant, at_the_end=False, saves_last=not is_sharded(start))
        elif "error" in meant:
            found = f"exit {last['codes']}: {' '.join(err for _, err in last['said'])}"  # rank 0 may only have lost another
            one_row = (
                "BatchNorm needs more than one value",
                "Expected more than 1 value per channel",
            )  # of another micro-batch, say
            kind, _, words = meant["error"].partition(": ")
            is_told = any(part in found for part in (words.split()[0] if kind == "Impure" else kind, *one_row))
            if 1 not in last["codes"] or not set(last["codes"]) <= {1, -15} or not is_told:
                raise Broken(f"the oracle says {meant['error']}, samestep {found}")
            place = re.findall(r"line \d+, in (\w+)", meant["traceback"])
            self.refusals[f"in the middle: {meant['error'][:60]} in {'/'.join(place[-4:])}"] += 1
            if (folder / "runs/drawn/metrics.jsonl").exists():  # else it has failed before the first step, in evaluation say
                if is_sharded(start):  # each rank has but its rows of the last steps
                    meant["rows"] = meant["rows"][: (folder / "runs/drawn/metrics.jsonl").read_bytes().count(b"\n")]
                saves_last = not is_sharded(start) and "in step" not in meant["traceback"]
                _compare(folder, run, meant, at_the_end=False, saves_last=saves_last)
        elif meant.get("diverged"):
            if 1 not in last["codes"] or "No step was taken with it" not in _words(last):
                raise Broken(
                    f"the oracle diverges after step {len(meant['rows'])}, samestep: exit {last['codes']} {_words(last)}"
                )
            self.refusals["diverged"] += 1
            _compare(folder, run, meant, at_the_end=False, saves_last=False)
        else:
            if set(last["codes"]) != {0}:
                raise Broken(f"exit {last['codes']}: {_words(last)}")
            _compare(folder, run, meant, at_the_end=True)

    def _start(self, folder: Path, start: list[Any], number: int, seed: int, name: str = "start") -> dict[str, Any]:
        size, signal, rank, place, call, overrides = start
        nodes = (NODES if "shard=node" in overrides else ANY_NODES).get(size, ["a" * size])
        job = {
            "folder": str(folder),
            "name": f"{name}-{number}",
            "world_size": size,
            "words": ["drawn.yaml", "--run", "drawn", *overrides],
            "env": {"PROMISE_FUSE": f"{signal}:{rank}:{place}:{call}"} if signal else {},
            "way": ("near", "by pieces", "far")[(number + seed) % 3],  # each start in turn: the bits are the same on all
            "nodes": nodes[(number + seed // 3) % len(nodes)],
        }
        answer: dict[str, Any] = self._trainer.ask(job)
        return answer

    def _cannot_shard(self, run: Run, folder: Path, answer: dict[str, Any], number: int) -> bool:
        """Whether a sharded start was refused because it is one; by the right words, whenever it must be, and else never."""
        words, must = _words(answer), unshardable(run)
        if answer["stuck"] or (not must and "shard: " not in words):
            return False
        if must and set(answer["codes"]) & {-9, 75}:  # it may have been killed before
            return True
        if must:
            is_right = 2 in answer["codes"] and any(reason in words for reason in must)
        else:
            found = features(run)
            is_right = not {1, 2}.isdisjoint(answer["codes"]) and any(
                part in words for name, parts in ASTRAY.items() if name in found for part in parts
            )
        in_the_middle = r"samestep: (rank \d+ on \S+: )?shard: " if 1 in answer["codes"] else "samestep: shard: "
        if not is_right or not all(re.match(in_the_middle, line) for line in words.splitlines()):
            raise Broken(f"shard: exit {answer['codes']}: {words}\nwhere it was to be refused as {must or 'astray, if at all'}")
        if 2 in answer["codes"] and number == 0 and (folder / "runs" / "drawn").exists():
            raise Broken(f"refused, and left a run folder behind: {words}")
        self.refusals[_kind(words)] += 1
        return True

    def _check_refusal(
        self, run: Run, folder: Path, answer: dict[str, Any], number: int, meant: dict[str, Any], start: list[Any]
    ) -> None:
        """One line, before the first step, with the same words at another size, nothing left, and for a reason."""
        words = _words(answer)
        rows = folder / "runs/drawn/metrics.jsonl"
        is_allowed = _is_allowed(run, words)
        if number and rows.exists() and rows.stat().st_size and "error" not in meant and not is_allowed:
            raise Broken(f"refused at start {number + 1} of a run that had begun: {words}")
        if not set(answer["codes"]) <= {2, *_VICTIMS}:
            raise Broken(f"exit {answer['codes']}: {words}")
        if not is_allowed and "error" not in meant:
            raise Broken(f"refused, and the oracle sees nothing wrong: {words}")
        if len(words.splitlines()) != 1:
            raise Broken(f"refused in {len(words.splitlines())} lines: {words}")
        if number == 0 and (folder / "runs" / "drawn").exists():
            raise Broken(f"refused, and left a run folder behind: {words}")
        most = min(2, run["config"].get("leaves") or run["config"]["global_batch_size"] // run["config"]["micro_batch_size"])
        other = 1 if run["starts"][0][0] > 1 else most
        unsharded = [word for word in start[5] if word not in SHARDS]  # which has mistakes of its own, told before others
        again = self._start(folder, [other, "", 0, "", 0, unsharded], number, 0, "other")
        if 2 not in again["codes"] or not set(again["codes"]) <= {2, *_VICTIMS} or _words(again) != words:
            raise Broken(f"refused on {run['starts'][0][0]} as {words!r}, on {other} exit {again['codes']}: {_words(again)!r}")
        self.refusals[_kind(words)] += 1

    def _count(self, run: Run, answers: list[dict[str, Any]]) -> None:
        self.counts.update(features(run))
        self.counts["runs"] += 1
        self.counts["runs with two processes or more"] += any(len(answer["codes"]) > 1 for answer in answers)
        self.counts["runs with a kill or stop"] += any(set(answer["codes"]) & {75, -9} for answer in answers)

    def report(self) -> str:
        lines = [f"{number:6d}  {name}" for name, number in sorted(self.counts.items())]
        return "\n".join([*lines, "refused:", *(f"{number:6d}  {name}" for name, number in self.refusals.most_common())])


def _words(answer: dict[str, Any]) -> str:
    """What a start said on stderr, the first rank that said anything; torch may have warned of something before."""
    ranks = [(code, err.strip()) for code, (_, err) in zip(answer["codes"], answer["said"], strict=True) if err.strip()]
    said = [err for code, err in ranks if code not in _VICTIMS] + [err for _, err in ranks]
    return said[0][max(0, said[0].find("samestep: ")) :] if said else ""


def _is_allowed(run: Run, words: str) -> bool:
    return any(re.search(REFUSED_BY[name], words) for name in features(run) if name in REFUSED_BY)


def _kind(words: str) -> str:
    return re.sub(r"\d+|'[^']*'", "…", words[words.find("task: ") :] if "task: " in words else words)[:90]


def _compare(folder: Path, run: Run, meant: dict[str, Any], at_the_end: bool, saves_last: bool = True) -> None:
    path = folder / "runs" / "drawn"
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row, want in zip(found, meant["rows"], strict=False):
        keys = [key for key in want if key in _PER_STEP or key == "step" or key.startswith("eval_")]
        for key in keys:
            if key not in row or not _same(row[key], want[key]):
                raise Broken(f"step {want['step']}: {key} is {row.get(key)}, the oracle's {want[key]}")
        extra = {key for key in row if key.startswith("eval_") or key in _PER_STEP} - set(keys)
        if extra:
            raise Broken(f"step {want['step']}: {sorted(extra)} beyond the oracle's row")
    if len(found) != len(meant["rows"]):
        raise Broken(f"{len(found)} rows, the oracle's {len(meant['rows'])}")
    saved = sorted((path / "checkpoints").glob("step-*"))
    wanted = {row["step"]: row["weights"] for row in meant["rows"] if "weights" in row}
    for place in saved if "part:tied" not in features(run) else []:  # of tied weights a file holds one
        step = int(place.name.removeprefix("step-"))
        if oracle.digest(safetensors.torch.load_file(place / "weights.safetensors")) != wanted[step]:
            raise Broken(f"the checkpoint of step {step} holds other weights than the oracle's")
    state = json.loads((path / "state.json").read_text())
    if wanted and saves_last and max(wanted) != int(saved[-1].name.removeprefix("step-")):
        raise Broken(f"the last finished step is {max(wanted)}, the last saved is {saved[-1].name}")
    if at_the_end:
        end = meant["end"]
        if (state["step"], state["weights"]) != (end["step"], end["weights"]):
            raise Broken(
                f"step {state['step']}, weights {state['weights'][:12]}; the oracle's {end['step']}, {end['weights'][:12]}"
            )
        best = end["best"]
        if best is not None and not (path / "checkpoints" / f"step-{best:08d}").is_dir():
            raise Broken(f"the best, step {best}, is not kept: {sorted(p.name for p in (path / 'checkpoints').iterdir())}")


def _same(found: Any, want: Any) -> bool:
    if isinstance(want, float) and not math.isfinite(want):  # JSON has no word for that
        return found is None
    return bool(found == want)


if __name__ == "__main__":
    checker = Checker()
    for line in sys.argv[1:]:
        checker.check(json.loads(line))
        print("kept")
    checker.close()
