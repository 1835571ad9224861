"""Every way a run ends early, the exit code that goes with it, and how a mistake is put into one line."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

UNSEEN = "\0"  # begins what a place in a config is called by pydantic alone; no YAML has such a key
_LIBRARIES = ("site-packages", "dist-packages", "<frozen ", os.path.dirname(__file__) + os.sep, os.path.dirname(os.__file__))
_LONGEST_VALUE = 80
_KEYS_SHOWN = 3
_WANTED = {
    "string_type": "text",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list, [one, other]",
}


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


def place_in_user_code(error: BaseException) -> str:
    """Where an error was raised, in words that follow its text: the innermost frame that is nobody's library."""
    frame = _users_frame(error)
    return f", at {frame.filename}:{frame.lineno} in {frame.name}"


def _users_frame(error: BaseException) -> traceback.FrameSummary:
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not any(part in frame.filename for part in _LIBRARIES)]
    return (outside or frames)[-1]


def looked_for(error: BaseException) -> str:
    """Where a file was looked for that the user's code opens and that is not there, in words that follow the error's."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    if not isinstance(name, (str, os.PathLike)) or os.path.isabs(name):
        return ""
    beside = os.path.join(os.path.dirname(_users_frame(error).filename), name)
    there = os.path.exists(beside)
    advice = f", and {beside} is there: write Path(__file__).parent / {os.fspath(name)!r}" if there else ""
    return f"; it was looked for in {os.getcwd()}{advice}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like the given one, if any comes close: whatever its case, hyphens for underscores."""
    return next(iter(nearest_few(word, known)), None)


def nearest_few(word: str, known: Iterable[str]) -> list[str]:
    """The known words that come close to the given one, at most three, the closest first."""
    plain = {name.lower().replace("_", "-"): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", "-").strip(), list(plain), cutoff=0.6)
    return [plain[name] for name in close]


def validation_lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line for each mistake that pydantic found: the key, what stands there, what to write instead."""
    return [_line(detail, model, prefix) for detail in error.errors(include_url=False)]


def _line(detail: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    path = [str(part) for part in detail["loc"] if part != "[key]" and not str(part).startswith(UNSEEN)]
    key, kind, found = prefix + ".".join(path), detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {_hint(path, model)}"
    if kind == "missing":
        return f"{key}: missing; write {key}=VALUE, or the key in the config"
    if kind == "value_error":
        message = str(detail["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    if kind == "invalid_key" or (kind == "string_type" and detail["loc"][-1] == "[key]"):
        return (
            f"{prefix}{'.'.join([*path[:-1], repr(found)])}: unknown key; write a name, with quotes if it looks like a number"
        )
    return f"{key}: found {'nothing' if found is None else shortened(found)}; write {_wanted(detail, model, path)}"


def shortened(value: object) -> str:
    """A value as Python writes it, cut to what a line has room for."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}…"


def _wanted(detail: ErrorDetails, model: type[BaseModel], path: list[str]) -> str:
    kind, found = detail["type"], detail["input"]
    if kind == "int_type" and isinstance(found, float) and found.is_integer():
        return f"{found:.0f}, an integer"
    if kind in ("model_type", "dict_type"):
        keys = ", ".join(f"{key}: …" for key in _keys_at(model, path)[:_KEYS_SHOWN])
        return f"a mapping, {{{keys or 'key: value'}}}"
    message = str(detail["msg"]).removeprefix("Input should be ")
    return _WANTED.get(kind) or (f"a number {message}" if kind.startswith(("greater_than", "less_than")) else message)


def _hint(path: list[str], model: type[BaseModel]) -> str:
    """What an unknown key may have been meant to be: one of its neighbours, or the same word at another place."""
    word, known = path[-1], _keys_at(model, path[:-1])
    if word not in known and (elsewhere := [key for key in _dotted_keys(model) if key.rpartition(".")[2] == word]):
        return f"did you mean {elsewhere[0]}?"
    if close := nearest(word, known):
        return f"did you mean {close}?"
    return f"known keys: {', '.join(sorted(known))}" if known else "it has none"


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name in _keys_at(model, []):
        inner = _model_of(model, name)
        found += [f"{prefix}{name}", *(_dotted_keys(inner, f"{prefix}{name}.") if inner else [])]
    return found


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        inner = _model_of(model, part)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model that stands behind a key, if it is a mapping with keys of its own."""
    field = next((f for name, f in model.model_fields.items() if key in (name, f.alias)), None)
    inner = field.annotation if field else None
    return next((kind for kind in (inner, *getattr(inner, "__args__", ())) if hasattr(kind, "model_fields")), None)
