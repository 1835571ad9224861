"""The one wandb run of a run: its config, code, rows, and how it ended."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import netrc
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from samestep.run.metric_rows import Row
from samestep.tracking.background import RunInfo

# What `wandb.init` takes from us, unless the environment says it in wandb's own words.
_SAID_BY_ENVIRONMENT = {
    "project": "WANDB_PROJECT",
    "name": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "tags": "WANDB_TAGS",
    "notes": "WANDB_NOTES",
    "dir": "WANDB_DIR",
}


class WandbRun:
    """Records under one id in every start.

    wandb takes no row of an earlier step than it has. So a row is sent once it is whole, with the evaluation after its step,
    and a start that goes on sends first what the earlier ones recorded: a server leaves out what it has, and an offline folder
    holds the whole run.
    """

    def __init__(self, run: RunInfo, mode: str) -> None:
        import wandb  # about a second

        settings = wandb.Settings(silent=True, console="off")
        wandb.setup(settings)  # or it tells on standard error whose key it has found
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # wandb's own telemetry, which complains at exit
        track = run.config["track"]
        ours: dict[str, Any] = {"project": track["project"], "name": run.name, "group": run.group, "job_type": "train"}
        ours |= {"tags": track["tags"], "notes": track["notes"], "dir": str(run.path)}
        self._table, self._path = wandb.Table, run.path
        self._goals = _goals(run.config)
        self._best: dict[str, float] = {}
        self._whole: Row = {}
        self._last: Row = {}
        ours = {key: value for key, value in ours.items() if not os.environ.get(_SAID_BY_ENVIRONMENT[key])}
        ours |= {"id": run.id, "mode": mode, "config": run.config, "settings": settings}
        init: Callable[..., Any] = functools.partial(wandb.init, **ours)
        self._run, self._sent_up_to = _begun(init, run.fork if mode == "online" else None, wandb.Error)
        if (run.path / "sources").exists():  # the task's files; wandb warns of links to files elsewhere
            shutil.copytree(run.path / "sources", Path(self._run.dir) / "sources")
            self._run.save(f"{self._run.dir}/sources/**/*.py", base_path=self._run.dir, policy="now")
        for row in run.rows():
            self.row(row)

    def row(self, values: Row) -> None:
        if self._whole and values["step"] != self._whole["step"]:
            self._send()
        self._whole |= values

    def _send(self) -> None:
        row, self._whole = self._whole, {}
        step = row.pop("step")
        for key in self._goals.keys() & row.keys():
            best = self._best.get(f"best_{key}", math.nan)
            if math.isnan(best) or (row[key] < best if self._goals[key] == "min" else row[key] > best):
                self._best |= {f"best_{key}": row[key], f"best_{key}_step": step}
        if step > self._sent_up_to:
            self._run.log(
                {key: self._in_a_table(step, value) if isinstance(value, str) else value for key, value in row.items()},
                step=step,
            )
        self._last |= {"step": step, **{key: value for key, value in row.items() if not isinstance(value, str)}}

    def _in_a_table(self, step: int, text: str) -> object:
        return self._table(columns=["step", "text"], data=[[step, text]])

    def close(self) -> str | None:
        if self._whole:
            self._send()
        state = json.loads((self._path / "state.json").read_text())
        status = state["status"] if state["status"] in ("done", "stopped") else "failed"
        self._run.summary.update({**self._last, **self._best, "status": status, "weights": state["weights"]})
        folder = Path(self._run.dir).parent
        self._run.finish(exit_code=int(status == "failed"))
        return f"wandb sync {folder}" if self._run.settings.mode == "offline" else None


def _begun(init: Callable[..., Any], fork: tuple[str, int] | None, refused: type[Exception]) -> tuple[Any, int]:
    """wandb's run, and the step up to which a server has its rows: an earlier start's, or those of the run that it forks."""
    if fork is not None:
        parent, step = fork
        with contextlib.suppress(refused):  # a server that does not fork, or has no such run: then its rows are copied
            return init(fork_from=f"{parent}?_step={step}"), step
    run = init(resume="allow")
    return run, run.step - 1


def _goals(config: dict[str, Any]) -> dict[str, str]:
    """Which of a metric's values is its best, as far as the config tells: min or max; of a loss it is the least."""
    goals = {"eval_loss": "min"}
    if config["converge"]:
        goals["eval_" + config["converge"]["metric"].removeprefix("eval_")] = config["converge"]["goal"]
    if config["checkpoint"]["best"]:
        metric, _, goal = config["checkpoint"]["best"].partition(":")
        goals["eval_" + metric.removeprefix("eval_")] = goal or "min"
    return goals


def wandb_mode(asked: str) -> str:
    """online, offline or off: as `track.wandb` asks, but what the environment forbids in wandb's own words stays undone."""
    said = os.environ.get("WANDB_MODE", "").lower()
    forbidden = os.environ.get("WANDB_DISABLED", "").lower() not in ("", "0", "false", "no", "off")
    if asked == "off" or said == "disabled" or forbidden:
        return "off"
    if asked == "offline" or said in ("offline", "dryrun"):
        return "offline"
    return "online" if asked == "online" or said == "online" or _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
