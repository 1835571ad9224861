"""What `profile` asks for: a trace of some steps by torch.profiler, and a table of the operations that took longest."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as trace_of

from samestep.config import Profile
from samestep.errors import Stopped
from samestep.loop import Training
from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder

_SHOWN = 10


@contextlib.contextmanager
def profiled(settings: Profile | None, run: Training, folder: RunFolder) -> Iterator[None]:
    """The training inside, some steps of it traced. A stop has what was traced until then written; a fault has not."""
    if settings is None:
        yield
        return
    profiler = _Profiler(settings, run, folder)
    try:
        yield
    except Stopped:
        profiler.close()
        raise
    profiler.close()


class _Profiler:
    """Traces from the end of one step to that of another, so that what happens between two steps is in it."""

    def __init__(self, settings: Profile, run: Training, folder: RunFolder) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to standard error whenever it starts and stops
        self._device, self._say, self._folder = run.optimizer.device, run.reports.tracker.line, folder
        self._first = max(settings.start - 1, run.first_step)  # from 0; a start that goes on may be amid them
        self._end = min(settings.start - 1 + settings.steps, run.num_steps)
        self._trace: trace_of | None = None
        self._traced = 0
        if self._first >= self._end:
            return
        importlib.import_module("torch._inductor.config")  # seconds, which the profiler would take in the midst of training
        self._then, run.after_step = run.after_step, self._after_step
        if self._first == run.first_step:
            self._begin()

    def _after_step(self, step: int) -> None:
        self._then(step)
        if self._trace is not None:
            self._traced += 1
        if step + 1 == self._first:
            self._begin()
        elif step + 1 == self._end:
            self.close()

    def _begin(self) -> None:
        self._wait()
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])]
        self._trace = trace_of(activities=kinds)
        self._trace.start()

    def _wait(self) -> None:
        """For what is queued on a GPU: it belongs to the steps so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """Write what has been traced by now, if anything is under way."""
        trace, self._trace = self._trace, None
        if trace is None:
            return
        self._wait()
        trace.stop()
        path = self._folder.profile(self._first + 1)
        table = path.with_name(path.name.replace(".json.gz", ".txt"))
        text = "\n".join(self._table(trace))
        try:
            path.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory() as place:
                trace.export_chrome_trace(f"{place}/trace.json.gz")
                write_atomically(path, Path(f"{place}/trace.json.gz").read_bytes())
            write_atomically(table, f"{text}\n")
        except OSError as error:
            self._say(f"WARNING: the profile could not be written ({error.strerror}); the run goes on")
            return
        self._say(f"{text}\nprofile {path}, {table}")
        self._say(
            "open the .json.gz at ui.perfetto.dev, which reads it in the browser and uploads nothing, or in chrome://tracing"
        )

    def _table(self, trace: trace_of) -> list[str]:
        """The operations that took longest by themselves, on the GPU if there is one."""
        on_gpu = self._device.type == "cuda"
        took_us = {
            each.key: (each.self_device_time_total if on_gpu else each.self_cpu_time_total, each.count)
            for each in trace.key_averages()
            if each.device_type.name == "CPU"  # an operation, with the time of the kernels that it has launched
        }
        whole_us, steps = sum(us for us, _ in took_us.values()), max(self._traced, 1)
        last = self._first + self._traced
        lines = [f"steps {self._first + 1} to {last}: what took longest by itself on the {'GPU' if on_gpu else 'CPU'}"]
        lines.append(f"{'ms a step':>10} {'share':>6} {'calls a step':>13}  operation")
        for name, (us, count) in sorted(took_us.items(), key=lambda item: -item[1][0])[:_SHOWN]:
            lines.append(f"{us / steps / 1e3:>10.3f} {us / max(whole_us, 1e-9):>6.1%} {count / steps:>13.1f}  {name}")
        return lines
