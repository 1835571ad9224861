"""What verify says of a run that ended without a record of why."""

from __future__ import annotations

from samestep.commands.first_steps import last_words

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
