"""The kind of device a process computes on: the bits of a run hold within one kind."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

_TELLING = ("avx", "amx", "fma", "sse4", "asimd", "sve", "bf16")  # instruction sets that kernels are chosen by


def device_kind(device: torch.device) -> dict[str, str]:
    """All that decides which kernels run, and with that the bits: device, driver, libraries, switches."""
    kind = {"torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        kind |= {
            "name": found.name,
            "processors": str(found.multi_processor_count),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "driver": _driver(),
            "blas": str(torch.backends.cuda.preferred_blas_library()).rpartition(".")[2],
            "workspaces": f"{os.environ.get('CUBLAS_WORKSPACE_CONFIG')} {os.environ.get('CUBLASLT_WORKSPACE_SIZE')}",
            "tf32": f"{torch.backends.cuda.matmul.allow_tf32} {torch.backends.cudnn.allow_tf32}",
        }
    else:
        kind |= {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "instructions": _instructions(),
            "mkl": str(torch.backends.mkl.is_available()),
            "onednn": str(torch.backends.mkldnn.is_available()),
            "threads": str(torch.get_num_threads()),
        }
    return kind


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """One line for each property in which two kinds differ."""
    keys = sorted({*before, *now})
    return [f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def beside_a_difference(device: torch.device) -> str:
    """What to say beside a difference found here: on a GPU an allocator that had to try again may change a kernel's choice."""
    if device.type != "cuda":
        return ""
    retries = torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
    return f" (The allocator here was out of memory and tried again {retries} times.)" if retries else ""


def _driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else "unknown"


def _instructions() -> str:
    """The vendor and those instruction sets of the processor that math libraries dispatch on."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    vendor, flags = platform.machine(), set()
    for line in info.read_text().split("\n\n", 1)[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id":
            vendor = value.strip()
        if name.strip() in ("flags", "Features"):
            flags = {flag for flag in value.split() if flag.startswith(_TELLING)}
    return " ".join([vendor, *sorted(flags)])
