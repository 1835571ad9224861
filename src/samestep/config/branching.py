"""What may change where a run branches from another, key by key."""

from __future__ import annotations

from samestep.config.resume import FREE_ON_RESUME, dotted
from samestep.config.schema import Config
from samestep.errors import UsageError

_FITS = "yes, if the weights fit the model; rows are read anew, and best and convergence begin anew"
_ROWS = "yes; a step takes the rows that it would have taken had the run begun so"
_ON = "yes, from the next step on"
_KIND = "yes; the bits are another kind's from there on"
ON_A_BRANCH = {
    "task": _FITS,
    "with": _FITS,
    "seed": "yes; rows, dropout and transforms are the new seed's from the next step on",
    "global_batch_size": _ROWS,
    "micro_batch_size": _ROWS,
    "drop_last": _ROWS,
    "steps": "yes, beyond the step branched from",
    "epochs": "yes",
    "optimizer": _ON + "; its state is taken over",
    "optimizer.name": _ON + "; its state begins anew",
    "schedule": "yes; a step has the rate that it would have had under the new one; `plateau` begins anew with another metric, "
    "other rows, or another `evaluate`",
    "precision": _ON,
    "attention": _KIND,
    "clip": _ON,
    "reduce": _ON,
    "leaves": _ON,
    "compile": _ON,
    "device": _KIND,
    "threads": _KIND,
    "init": "no: the weights are those branched from",
    **dict.fromkeys(FREE_ON_RESUME, "yes"),
}
_SAME_FORWARD = {"schedule", "optimizer", "clip", "steps", "epochs"} | FREE_ON_RESUME
_SAME_ROWS = {"task", "with", "seed"}


class Branching:
    """What of a checkpoint a branch takes over, and what begins anew, for the keys that have changed. Raises UsageError."""

    def __init__(self, before: Config, now: Config, step: int) -> None:
        old, new = dotted(before.resolved()), dotted(now.resolved())
        self.changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and key != "runs"]
        self._values = {key: (old.get(key), new.get(key)) for key in self.changed}
        if "init" in self.changed:
            raise UsageError(f"init: found {now.init!r}; a branch has the weights of its parent, leave it out")
        if now.known_steps is not None and now.known_steps <= step:
            raise UsageError(f"steps: found {now.known_steps}, and the branch begins after step {step}; write more")
        tops = {key.partition(".")[0] for key in self.changed}
        self.keeps_proof = tops <= _SAME_FORWARD
        self.keeps_rows = not tops & _SAME_ROWS
        self.keeps_best = self.keeps_rows and before.checkpoint.best == now.checkpoint.best
        self.keeps_convergence = self.keeps_rows and before.converge == now.converge
        judged = [(config.schedule.judged_by, config.evaluate) for config in (before, now)]
        self.keeps_evaluations = self.keeps_rows and judged[0] == judged[1]
        names = [{part: wanted.name for part, wanted in config.optimizers.items()} for config in (before, now)]
        self.keeps_optimizer = names[0] == names[1]
        self.options = sorted({key.rpartition(".")[2] for key in self.changed if key.startswith("optimizer.")} - {"name", "lr"})

    def lines(self) -> list[str]:
        """One for each key that has changed: its values, and what that means."""
        found = []
        for key, (old, new) in self._values.items():
            words = ON_A_BRANCH.get(key) or ON_A_BRANCH[key.partition(".")[0]]
            found.append(f"{key}: {old!r} → {new!r}; {words.removeprefix('yes').lstrip(',; ') or 'no part of the maths'}")
        return found
