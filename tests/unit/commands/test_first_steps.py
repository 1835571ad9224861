"""What verify says of a run that ended without a record of why."""

from __future__ import annotations

from pathlib import Path

from samestep.commands.first_steps import first_steps_alone, last_words
from samestep.commands.prove.training import _config
from samestep.config import load_config
from samestep.run.folder import RunFolder

TORCHRUN = """
*****************************************
Setting OMP_NUM_THREADS environment variable for each process to be 1 in default, please further tune the variable.
*****************************************
terminate called without an active exception
W1124 12:13:43.337000 14723 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 14741 closing signal
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
=======================================================
samestep FAILED
-------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_12:13:43
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -6 (pid: 14742)
  error_file: <N/A>
  traceback : Signal 6 (SIGABRT) received by PID 14742
=======================================================
"""


def test_the_last_words_are_those_of_the_rank_and_not_the_launchers_frame() -> None:
    words = last_words(TORCHRUN)
    assert "terminate called without an active exception" in words
    assert words.endswith("rank 1: Signal 6 (SIGABRT) received by PID 14742")
    assert "===" not in words
    assert last_words("one\ntwo\n\n") == "one; two"


def test_a_rate_that_goes_by_evaluations_can_be_pinned_and_proved(tmp_path: Path) -> None:
    """Such a config must evaluate: what is laid over it for its first steps, or to train it again, lets it."""
    (tmp_path / "config.yaml").write_text(
        "task: digits\nglobal_batch_size: 8\nmicro_batch_size: 8\nsteps: 40\noptimizer: {name: sgd, lr: 0.1}\n"
        "evaluate: {every: 5}\nschedule: {name: plateau, patience: 1}\n"
    )
    config, _ = load_config(tmp_path / "config.yaml")
    first, _ = load_config(tmp_path / "config.yaml", first_steps_alone(config, 12))
    assert first.evaluate.every == 13  # evaluated at the end alone
    assert _config(RunFolder(tmp_path), []).evaluate.every == 5
