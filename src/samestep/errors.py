"""Every way a run ends early, the exit code that goes with it, and how a mistake is put into one line."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

UNSEEN = "~"  # begins what a place in a config is called by pydantic alone, the kind of an alternative say


class SamestepError(Exception):
    """The root of all errors that samestep raises on purpose; `exit_code` is what the command ends with."""

    exit_code = 1


class TrainingError(SamestepError):
    """A fault in training. Its text is one paragraph that says what happened and what to try."""


class Overtaken(TrainingError):
    """A later start owns the run: this one writes no more."""


class UsageError(SamestepError):
    """What was typed or configured is wrong. One line for each mistake: what was found, what to write."""

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


class Stopped(SamestepError):
    """The run stopped early on purpose, with everything saved: the same line again goes on."""

    exit_code = 75


def place_in_user_code(error: Exception) -> str:
    """Where an error was raised, in words that follow its text: the innermost frame that is nobody's library."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "site-packages" not in frame.filename and "/samestep/" not in frame.filename]
    frame = (outside or frames)[-1]
    return f", at {frame.filename}:{frame.lineno} in {frame.name}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like the given one, if any comes close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def validation_lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line for each mistake that pydantic found: the key, what stands there, what to write instead."""
    return [_line(detail, model, prefix) for detail in error.errors(include_url=False)]


def _line(detail: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    path = [str(part) for part in detail["loc"] if not str(part).startswith(UNSEEN)]
    key, found = prefix + ".".join(path), detail["input"]
    if detail["type"] == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        close = nearest(path[-1], known)
        hint = f"did you mean {close}?" if close else f"known keys: {', '.join(sorted(known))}" if known else "it has none"
        return f"{key}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{key}: missing; write {key}=VALUE, or the key in the config"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: found {found!r}; write {message}"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        inner = field.annotation if field else None
        for candidate in (inner, *getattr(inner, "__args__", ())):
            if hasattr(candidate, "model_fields"):
                model = candidate
                break
        else:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]
