"""A config as YAML, and where each value came from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from samestep.config.reading import Loader, leaves
from samestep.config.schema import Config
from samestep.errors import UsageError

_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]{0,99}")


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else, so that any reader gets the same values."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
}


def _on_one_line(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if text.splitlines() not in ([text], []) else None)


_Dumper.add_representer(str, _on_one_line)


def to_text(config: Config, sources: dict[str, str]) -> str:
    """The resolved config as YAML, with a comment before each value that says where it came from.

    A block is one value where all of it came from one place, and else each of its keys is.
    """
    return "\n".join(_lines(config.resolved(), sources, ())) + "\n"


def _lines(tree: dict[str, Any], sources: dict[str, str], above: tuple[str, ...]) -> Iterator[str]:
    indent = "  " * len(above)
    for key, value in tree.items():
        path = (*above, key)
        origins = {_origin(leaf, sources) for leaf in leaves({".".join(path): value})}
        if len(origins) > 1 and all(_PLAIN_KEY.fullmatch(str(inner)) for inner in value):
            yield f"{indent}{key}:"
            yield from _lines(value, sources, path)
        else:
            yield f"{indent}# {', '.join(sorted(origins))}"
            text = yaml.dump(
                value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, allow_unicode=True, width=math.inf
            )
            yield f"{indent}{key}: {text.removesuffix('...' + chr(10)).strip()}"


def _origin(key: str, sources: dict[str, str]) -> str:
    """Of a dotted key: its own, or that of a value written for what it stands in, as `shard: true` is for all of its keys."""
    while key and key not in sources:
        key = key.rpartition(".")[0]
    return sources.get(key, "default")


def plain_text(tree: dict[str, Any], origin: str) -> str:
    """Values from Python as YAML; UsageError names a key whose value YAML has no words for."""
    for key, value in tree.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise UsageError(f"{origin}: {key}: found {value!r}; write text, numbers, lists and dicts") from None
    plain = json.loads(json.dumps(tree))  # tuples and numpy's floats
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
