"""Drawn tasks that remember: each is the same on any number of processes and through a resume, or is refused. None is silent.

`python tests/promise/hidden.py --count 500 --seed 1` draws so many that remember, and as many that do not.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from ranks import HERE, Ranks

from samestep.run.metric_rows import timeless

PLACES = [
    "task", "model", "layer", "module", "class", "task's class", "closure", "iterator", "generator", "cache", "default",
    "descriptor", "environment", "file", "thread", "process", "numpy", "torch", "context", "builtins", "library", "hook",
    "backward", "data set", "compiled",
]  # fmt: skip
OF_THE_MODEL = {"model", "layer", "hook", "backward", "compiled"}  # and so none of a transform's
WHATS = ["loss", "loss", "loss", "rows", "after_step", "evaluation", "evaluation of training"]
HOWS = ["counts", "flips", "keeps"]
ONSETS = [0, 1, 3, 20, 100]
REFUSALS = ("task: ", "the audit found another")


class Silent(AssertionError):
    """Two starts came to different ends, and nobody was told."""


def draw(rng: random.Random, pure: bool) -> dict[str, Any]:
    """A config: of a task that remembers, or of one that only counts."""
    what = rng.choice(WHATS)
    places = [place for place in PLACES if what != "rows" or place not in OF_THE_MODEL]
    fields: dict[str, Any] = {"place": rng.choice(places), "what": what, "how": rng.choice(HOWS), "onset": rng.choice(ONSETS)}
    if rng.random() < 0.2:
        fields |= {"row": 1.5, "onset": 10_000}  # from the first batch on that holds such a row
    if pure:
        fields["how"] = "nothing"
    micro, count = rng.choice([1, 2, 3]), rng.choice([1, 2, 4, 8])
    return {
        "task": "hidden_task.py:Hidden",
        "with": fields,
        "seed": rng.randrange(4),
        "global_batch_size": micro * count,
        "micro_batch_size": micro,
        "steps": rng.choice([4, 12, 40]),
        "optimizer": {"name": rng.choice(["adamw", "sgd"]), "lr": 0.01},
        "workers": rng.choice([0] * 9 + [1]),
        "evaluate": rng.choice([{}, {"every": 3}]),
        "checkpoint": rng.choice([{}, {"every": 2}]),
        "track": {"every": 1, "wandb": "off"},
    }


class Hunt:
    """Starts drawn tasks in several ways, and compares what they came to."""

    def __init__(self) -> None:
        self._ranks = Ranks()
        self.counts: collections.Counter[str] = collections.Counter()

    def close(self) -> None:
        self._ranks.close()

    def ends(self) -> tuple[int, int]:
        """How many were the same in every way, and how many were refused in any."""
        return self.counts["the same"], self.counts["refused"]

    def check(self, config: dict[str, Any], rng: random.Random, pure: bool) -> None:
        """Raises Silent if two of its ways were let through with different ends, or if a pure one was refused."""
        folder = Path(tempfile.mkdtemp(prefix="hidden-"))
        try:
            shutil.copy(HERE / "hidden_task.py", folder)
            (folder / "hidden.yaml").write_text(yaml.safe_dump(config))
            most = min(3, config["global_batch_size"] // config["micro_batch_size"])
            found = {f"on {size}": self._whole(folder, size, f"on-{size}") for size in sorted({1, most})}
            found["resumed"] = self._resumed(folder, rng.randint(1, most), rng.randint(1, most), rng.randint(2, 12))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        line = json.dumps(config)
        ends = {json.dumps(end) for end in found.values() if not isinstance(end, str)}
        refused = {way: end for way, end in found.items() if isinstance(end, str)}
        if len(ends) > 1:
            raise Silent(f"other ends {[way for way in found if way not in refused]} {refused}: {line}")
        for words in refused.values():
            if pure or not any(part in words for part in REFUSALS):
                raise Silent(f"{words}: {line}")
        fields = config["with"]
        self.counts["refused" if refused else "the same"] += 1
        for key in ("place", "what", "how", "onset"):
            self.counts[f"{key}: {fields[key]}"] += 1

    def _whole(self, folder: Path, size: int, name: str, **job: Any) -> Any:
        """What a start came to: its weights and rows, or the words of its refusal."""
        answer = self._ranks.ask(
            {"folder": str(folder), "name": name, "world_size": size, "words": ["hidden.yaml", "--run", name], **job}
        )
        said = " ".join(err for _, err in answer["said"])
        if answer["stuck"]:
            raise Silent(f"stuck: {said}")
        if 75 in answer["codes"]:
            return 75
        if set(answer["codes"]) != {0}:
            return said or f"exit {answer['codes']} without a word"
        run = folder / "runs" / name
        rows = [timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [json.loads((run / "state.json").read_text())["weights"], rows]

    def _resumed(self, folder: Path, before: int, after: int, call: int) -> Any:
        """Of a run that is stopped at one of its forwards and goes on."""
        found = self._whole(folder, before, "part", env={"HIDDEN_STOP": str(call)})
        return self._whole(folder, after, "part") if found == 75 else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    hunt, silent = Hunt(), 0
    for number in range(2 * given.count):
        rng = random.Random(f"{given.seed} {number}")
        pure = number % 2 == 1
        try:
            hunt.check(draw(rng, pure), rng, pure)
        except Silent as error:
            silent += 1
            print(f"{number}: {error}", flush=True)
    print("\n".join(f"{count:6d}  {name}" for name, count in sorted(hunt.counts.items())))
    print(f"{2 * given.count} drawn, {silent} silent")
    hunt.close()


if __name__ == "__main__":
    main()
