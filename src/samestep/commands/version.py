"""`samestep --version`: what a report of a fault should say, known without importing torch."""

from __future__ import annotations

import importlib.metadata
import platform
import re

from samestep.runtime.version import __version__


def versions() -> list[str]:
    """Lines of name and version: samestep, Python, torch, accelerate, and the kind of GPU that torch was built for."""
    found = [("samestep", __version__), ("Python", platform.python_version())]
    found += [(name, _version(name)) for name in ("torch", "accelerate")]
    return [*(f"{name} {number}" for name, number in found), _devices()]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def _devices() -> str:
    """CUDA's version, or ROCm's, as torch/version.py has it."""
    try:
        text = importlib.metadata.distribution("torch").locate_file("torch/version.py").read_text()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return "CUDA unknown: found no torch/version.py"
    for name, variable in (("CUDA", "cuda"), ("ROCm", "hip")):
        if found := re.search(rf"^{variable}\b[^=\n]*= *['\"](.+)['\"]", text, re.MULTILINE):
            return f"{name} {found[1]}"
    return "no CUDA in this torch build"
