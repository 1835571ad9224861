"""Every key of a config with what may be written there and what it means: for docs/config.md, and for Tab."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from samestep.config.meanings import MEANINGS
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
    return _keys(Config.model_json_schema(), "Config", "")


def _keys(root: dict[str, Any], model: str, prefix: str) -> list[Key]:
    described = root if model == "Config" else root["$defs"][model]
    found = []
    for name, entry in described["properties"].items():
        inner = _model(entry)
        default = _default(entry, name in described.get("required", ()), inner)
        found.append(Key(prefix + name, _values(entry), default, MEANINGS.get(prefix + name, ""), inner is not None))
        if inner is not None:
            found += _keys(root, inner, f"{prefix}{name}.")
    return found


def _model(entry: dict[str, Any]) -> str | None:
    """The mapping of keys that a key holds, if it does."""
    for kind in _kinds(entry):
        if "$ref" in kind:
            return str(kind["$ref"]).rpartition("/")[2]
    return None


def _values(entry: dict[str, Any]) -> str:
    """What may be written, in words."""
    return " or ".join(_kind(kind) for kind in _kinds(entry))


def _kinds(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return entry.get("anyOf") or entry.get("oneOf") or [entry]


def _kind(kind: dict[str, Any]) -> str:
    if "const" in kind or "enum" in kind:
        return ", ".join(f"`{_shown(value)}`" for value in kind.get("enum", [kind.get("const")]))
    if "$ref" in kind:
        return "keys"
    if isinstance(kind.get("additionalProperties"), dict):
        return "such keys for each name"
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
