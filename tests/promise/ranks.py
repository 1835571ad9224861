"""Starts ranks by fork from a process that has imported everything, so that a start takes a tenth of a second.

Each line on stdin is a job, each line on stdout its answer. A job's ranks get what torchrun would give them, run the
command line's own `main`, and are ended as torchrun ends them: once one has failed, the others get SIGTERM, and SIGKILL
thirty seconds later.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_PATIENCE_S = 30.0
_LONGEST_S = 120.0


class Ranks:
    """Asks a forking process of its own for starts; one job at a time.

    Args:
        modules: what it imports besides, since the tasks do.
    """

    def __init__(self, *modules: str) -> None:
        env = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
        env |= {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        words = [sys.executable, str(Path(__file__)), *modules]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._lock = threading.Lock()

    def ask(self, job: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        if self._process.stdout is not None:
            self._process.stdout.close()


def serve(modules: Sequence[str] = ()) -> None:
    """Import what a run needs, and nothing that starts a thread; then fork, job after job."""
    import accelerate  # noqa: F401
    import datasets
    import drawn_task  # noqa: F401
    import oracle  # noqa: F401
    import torch._dynamo
    import torch.distributed
    import torch.distributed.fsdp
    import torch.distributed.tensor
    import torch.nn.parallel  # noqa: F401

    import samestep.cli
    import samestep.commands.train
    import samestep.session  # noqa: F401

    for name in modules:
        importlib.import_module(name)
    datasets.disable_progress_bars()
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    assert set(threads[1:]) <= {"jemalloc_bg_thd"}, f"a process with threads must not fork: {threads}"  # pyarrow minds its own
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            job = json.loads(line)
            os.chdir(job["folder"])
            to_the_test = os.dup(1)
            answer = _write_weights(job) if "init" in job else _ask_the_oracle(job) if "oracle" in job else _launch(job)
            os.write(to_the_test, (json.dumps(answer) + "\n").encode())
            os._exit(0)
        os.waitpid(pid, 0)


def _ask_the_oracle(job: dict[str, Any]) -> dict[str, Any]:
    import drawn_task
    import oracle
    import torch

    from samestep.config import Config

    _redirect("oracle")
    config = job["oracle"]
    torch.set_num_threads(config.get("threads", 1))
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    rows: list[dict[str, Any]] = []
    try:
        task = getattr(drawn_task, config["task"].rpartition(":")[2])(**config["with"])
        parsed = Config.model_validate(config)
        rows.extend(oracle.train(config, task, parsed))
    except oracle.Diverged:
        return {"rows": rows, "diverged": True}
    except Exception as error:
        return {"rows": rows, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {"rows": rows[:-1], "end": rows[-1]}


def _write_weights(job: dict[str, Any]) -> dict[str, Any]:
    """Other first weights than the run's seed would make, where its config looks for them."""
    import drawn_task
    import safetensors.torch
    import torch

    _redirect("init")
    config = job["init"]
    torch.manual_seed(config["seed"] + 1)
    model = getattr(drawn_task, config["task"].rpartition(":")[2])(**config["with"]).model()
    weights = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, config["init"])
    return {}


def _launch(job: dict[str, Any]) -> dict[str, Any]:
    """Fork a job's ranks, wait for them, and give their exit codes (negative: a signal) and what each printed."""
    world_size, start = job["world_size"], time.monotonic()
    meeting = socket.create_server(("127.0.0.1", 0)) if world_size > 1 else None
    left: dict[int, int] = {}
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            port = meeting.getsockname()[1] if meeting else 0
            if meeting:
                meeting.close()
            _run_rank(job, rank, port)
        left[pid] = rank
    if meeting:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        _store = TCPStore(
            "127.0.0.1", meeting.getsockname()[1], is_master=True, wait_for_workers=False, master_listen_fd=meeting.detach()
        )
    codes: dict[int, int] = {}
    failed_at: float | None = None
    stuck = False
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[left.pop(pid)] = os.waitstatus_to_exitcode(status)
            if status and failed_at is None:
                failed_at = time.monotonic()
                for other in left:
                    os.kill(other, signal.SIGTERM)
            continue
        now = time.monotonic()
        if now > start + _LONGEST_S or (failed_at is not None and now > failed_at + _PATIENCE_S):
            stuck = True
            for other in left:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)

    said = [
        (Path(f"{job['name']}-{rank}.out").read_text(), Path(f"{job['name']}-{rank}.err").read_text())
        for rank in range(world_size)
    ]
    return {
        "codes": [codes[rank] for rank in range(world_size)],
        "said": said,
        "stuck": stuck,
        "took_s": time.monotonic() - start,
    }


def _redirect(name: str) -> None:
    for number, ending in ((1, "out"), (2, "err")):
        file = os.open(f"{name}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)


def _run_rank(job: dict[str, Any], rank: int, port: int) -> None:
    import numpy as np

    from samestep import cli
    from samestep.exact import transfer
    from samestep.run import snapshot
    from samestep.runtime import shared_memory

    random.seed()  # as a process of its own begins: what nobody seeds would be the same in every fork
    np.random.seed()
    code = 1
    if job.get("way") == "by pieces":  # drawn models are small, and would all go one way
        transfer._GATHERED_ELEMENTS = transfer._SHARED_ELEMENTS = 0
    if job.get("way") == "far":  # as if each rank had a machine of its own
        shared_memory._IS_FIT = False
    atexit._clear()  # what was registered by the imports of the process that forks is its own
    found: list[dict[str, Path]] = []
    look = snapshot._files  # through all modules, of which there are far more here than in a process that trains alone
    snapshot._files = lambda task: found[0] if found else found.append(look(task)) or found[0]  # type: ignore[func-returns-value]
    try:
        _redirect(f"{job['name']}-{rank}")
        if job["world_size"] > 1:
            size = str(job["world_size"])
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "promise"}
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        os.environ |= job.get("env", {})
        if "nodes" in job:
            os.environ["_SAMESTEP_NODE"] = job["nodes"][rank]
        sys.argv = ["samestep", job.get("command", "train"), *job["words"]]
        if "script" not in job:
            cli.main()
        sys.argv = [job["script"], *job["words"]]
        runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1:])
