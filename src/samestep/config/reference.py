"""Every key of a config with what may be written there and what it means: for docs/config.md, and for Tab."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.config import schema
from samestep.config.schema import Config

_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "`null`"}
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Key:
    """A key by its dotted name."""

    name: str
    values: str
    default: str
    meaning: str
    has_keys: bool  # of its own


def keys() -> list[Key]:
    """Every key, in the schema's order, each before those within it."""
    return _keys(Config.model_json_schema(), "Config", _meanings(), "")


def _keys(root: dict[str, Any], model: str, meanings: dict[tuple[str, str], str], prefix: str) -> list[Key]:
    described = root if model == "Config" else root["$defs"][model]
    found = []
    for name, entry in described["properties"].items():
        inner = _model(entry)
        default = _default(entry, name in described.get("required", ()), inner)
        meaning = meanings.get((model, name), "")
        found.append(Key(prefix + name, _values(entry), default, meaning, inner is not None))
        if inner is not None:
            found += _keys(root, inner, meanings, f"{prefix}{name}.")
    return found


def _model(entry: dict[str, Any]) -> str | None:
    """The mapping of keys that a key holds, if it does."""
    for kind in (entry, *entry.get("anyOf", ())):
        if "$ref" in kind:
            return str(kind["$ref"]).rpartition("/")[2]
    return None


def _values(entry: dict[str, Any]) -> str:
    """What may be written, in words."""
    kinds = [_kind(kind) for kind in entry.get("anyOf", [entry])]
    return " or ".join(kinds)


def _kind(kind: dict[str, Any]) -> str:
    if "const" in kind or "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind.get("enum", [kind.get("const")]))
    if "$ref" in kind:
        return "keys"
    if kind.get("type") == "array":
        return f"list of {_values(kind['items'])}"
    limits = [f"{sign} {_shown(kind[name])}" for name, sign in _LIMITS.items() if name in kind]
    return " ".join([_TYPES.get(str(kind.get("type")), "mapping"), *limits])


def _default(entry: dict[str, Any], required: bool, inner: str | None) -> str:
    if required:
        return "required"
    if "default" not in entry:
        return "`{}`"
    return "" if inner and entry["default"] is not None else f"`{_shown(entry['default'])}`"


def _shown(value: object) -> str:
    if value == 1 << 63:
        return "2^63"
    return value if isinstance(value, str) else json.dumps(value)


def _meanings() -> dict[tuple[str, str], str]:
    """The line below each field in schema.py, by class and key. pydantic would read them at every start, for 0.1 s."""
    found = {}
    for model in ast.parse(Path(schema.__file__).read_text()).body:
        if isinstance(model, ast.ClassDef):
            fields = vars(schema)[model.name].model_fields
            for field, line in zip(model.body, model.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    name = fields[field.target.id].alias or field.target.id
                    if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
                        found[model.name, name] = str(line.value.value)
    return found
