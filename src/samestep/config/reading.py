"""A config from YAML and `key=value`; each value remembers where it came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.reader import ReaderError

from samestep.config.beside import find_beside
from samestep.config.schema import Config
from samestep.errors import UsageError, nearest, shortened, validation_lines
from samestep.run.snapshot import as_kept
from samestep.runtime.shipped import shipped_config, shipped_configs
from samestep.task.script import read_script

_MOST_DIGITS = 100
_LONGEST_SHOWN = 100  # of what was typed
_ADVICE = {  # what to write where YAML's own words say too little
    "cannot start any token": "write spaces for tabs, and quotes around text that begins with a sign",
    "could not find expected ':'": "write key: value, with a space behind the colon",
    "constructor for the tag": "write plain values, without a tag",
    "mapping values are not allowed": "write quotes around text with a colon in it, and indent neighbours alike",
    "another document": "write one, without a line of ---",
}


class Loader(yaml.SafeLoader):
    """YAML 1.1 reads `off` and `no` as False and `1e-3` as text; this loader reads scalars as YAML 1.2 does."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in ("bool", "float", "int", "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > _MOST_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"found a number of {len(text)} digits", node.start_mark)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, origin: str) -> Any:
    """Plain values; UsageError if the text is not YAML, or has a key twice, of which other readers keep the last."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        repeated = _repeated_keys(node, set())
        tree = loader.construct_document(node) if node and not repeated else None
        _refuse_a_cycle(node, set(), set())
    except ReaderError as error:
        where = f"{origin} line {text[: error.position].count(chr(10)) + 1}"
        raise UsageError(f"{where}: not YAML: found the character {chr(error.character)!r}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).removeprefix("but ")
        advice = next((f"; {words}" for part, words in _ADVICE.items() if part in problem), "")
        raise UsageError(f"{origin}{where}: not YAML: {problem}{advice}") from None
    except RecursionError:
        raise UsageError(f"{origin}: found lists or mappings that lie too deep in each other; write fewer levels") from None
    if repeated:
        raise UsageError(*(f"{origin}: {key}: found on {places}; write it once" for key, places in repeated))
    return tree


def _refuse_a_cycle(node: yaml.Node | None, above: set[int], done: set[int]) -> None:
    """Raise a YAMLError for an alias of what it stands in, which no reader could come to the end of."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in done:
        return
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "found an alias of what it stands in", node.start_mark)
    for entry in node.value:
        for inner in entry if isinstance(entry, tuple) else (entry,):
            _refuse_a_cycle(inner, above | {id(node)}, done)
    done.add(id(node))


def _repeated_keys(node: yaml.Node | None, seen: set[int], prefix: str = "") -> list[tuple[str, str]]:
    """Each dotted key that stands more than once in one mapping, and on which lines."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:  # an alias is the same node again
        return []
    seen.add(id(node))
    lines: dict[str, list[str]] = {}
    within: list[tuple[str, str]] = []
    for place, entry in enumerate(node.value):
        inner, name = entry, f"{prefix}{place}"
        if isinstance(node, yaml.MappingNode):
            key, inner = entry
            name = f"{prefix}{key.value}"
            lines.setdefault(name, []).append(str(key.start_mark.line + 1))
        within += _repeated_keys(inner, seen, f"{name}.")
    own = [(name, f"lines {', '.join(places[:-1])} and {places[-1]}") for name, places in lines.items() if len(places) > 1]
    return own + within


def read_text(file: Path, shown: str | Path) -> str:
    """A file's text; UsageError if it cannot be read, or names the line that is not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{shown}: it cannot be read ({error.strerror}); write another path, or change its mode") from None
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{shown} line {line}: found {data[error.start]:#x}, which is not UTF-8; save the file as UTF-8"
        ) from None


def load_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> tuple[Config, dict[str, str]]:
    """Read a config file, or a script that calls `samestep.main`, lay `key=value` over it, and validate the whole.

    Returns the config and, for each dotted key that somebody wrote, where: the file's name or "command line".
    A file that a value names is looked for here, and else beside the config. UsageError has one line for each mistake.
    """
    file, path, folder = *_found(path), Path(path) if Path(path).is_dir() else Path(path).parent
    tree: Any
    short: dict[str, str] = {}
    if file.suffix == ".py":
        tree, short = read_script(file, str(path))
    else:
        tree = parse_yaml(read_text(file, path), str(path))
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else "a list" if isinstance(tree, list) else shortened(tree)
        raise UsageError(f"{path}: found {found}; write keys and values, task: … first")
    sources = dict.fromkeys(leaves(tree), str(path))
    for override in overrides:
        name, equals, text = override.partition("=")
        key, value = _lay_over(tree, f"{short.get(name, name) if name not in Config.model_fields else name}{equals}{text}")
        sources = {known: origin for known, origin in sources.items() if not known.startswith(key + ".")}
        sources |= dict.fromkeys(leaves({key: value}), "command line")
    find_beside(tree, folder)
    return validated(tree), sources


def _found(path: str | Path) -> tuple[Path, str]:
    """The file of a config, of the one in a run's folder, or of one that comes with samestep; and what to call it.

    Raises UsageError if there is none, naming one like it.
    """
    file = Path(path)
    try:
        is_folder = file.is_dir()
        file = as_kept(file / "config.yaml" if is_folder else file)
        if file.is_file():
            return file, str(path)
        if (ours := shipped_config(Path(path))) is not None:
            return ours, f"samestep's {ours.stem}"
        beside = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
    except (OSError, ValueError) as error:  # a name too long, or with a null in it
        words = getattr(error, "strerror", None) or error
        raise UsageError(f"CONFIG: found {shortened(str(path))} ({words}); write the path of a YAML file") from None
    close = nearest(file.name, [name for name in beside if name != file.name])
    known = f"the path of a YAML file, or one that comes with samestep: {', '.join(shipped_configs())}"
    hint = f"did you mean {file.parent / close}?" if close and path and not is_folder else f"write {known}"
    what = "a folder without a config.yaml" if is_folder else "no such config"
    raise UsageError(f"{path or 'CONFIG'}: found {what}; {hint}")


def validated(tree: dict[str, Any]) -> Config:
    """A config from plain values; UsageError has one line for each mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(*validation_lines(error, Config)) from None


def _lay_over(tree: dict[str, Any], override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"{override or repr(override)}: found no key=value; write {override or 'key'}=VALUE")
    if not all(key.split(".")):
        raise UsageError(f"{override}: found no name {'before the =' if not key else 'on one side of a dot'}; write key=VALUE")
    *parents, last = key.split(".")
    place = tree
    for depth, parent in enumerate(parents, 1):
        inner = place.get(parent)
        if not isinstance(inner, dict):
            if inner is not None:
                whole = ".".join(parents[:depth])
                raise UsageError(f"{key}: {whole} is {shortened(inner)}, and has no keys of its own; write {whole}=VALUE")
            inner = place[parent] = {}
        place = inner
    place[last] = parse_yaml(text, f"{key}={text}"[:_LONGEST_SHOWN])
    return key, place[last]


def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of all values that are not mappings, or are empty ones."""
    found: list[str] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found += leaves(value, name + ".") if isinstance(value, dict) and value else [name]
    return found
