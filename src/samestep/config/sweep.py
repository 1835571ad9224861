"""A sweep: which overrides its runs have, what they are called, and the config of each."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import shlex
from pathlib import Path
from typing import Any

from samestep.config.reading import load_config, parse_yaml, read_text
from samestep.config.schema import Config
from samestep.errors import UsageError

_LONGEST_NAME = 120  # characters of a point in its run's name
_WAY_OUT = "write a list of values for each key, optimizer.lr: [1e-3, 3e-3], or a range, {min: 1e-4, max: 1e-2, log: true}"


def points(file: Path, draws: int | None = None, seed: int | None = None) -> list[list[str]]:
    """The overrides of each run of a sweep.

    From a grid in YAML every combination of its lists, or so many drawn ones as it says under `random`, `{runs: 20, seed: 0}`;
    from text a line of key=value for each.

    Args:
        draws: how many to draw, whatever the file says.
        seed: of the draws, whatever the file says. More draws of one seed begin with the same ones.

    Raises UsageError for a file that is neither.
    """
    text = read_text(file, file)
    if file.suffix not in (".yaml", ".yml"):
        if draws is not None:
            raise UsageError(f"{file}: found lines of key=value, of which each is a run; leave out --random, or write a grid")
        return _lines(file, text)
    grid = parse_yaml(text, str(file))
    if not isinstance(grid, dict):
        raise UsageError(f"{file}: found no grid; {_WAY_OUT}")
    asked = _asked(file, grid.pop("random", None))
    if not grid or (wrong := [key for key, values in grid.items() if not (_is_list(values) or _is_range(values))]):
        raise UsageError(f"{file}: found no grid{f' at {wrong[0]}' if grid else ''}; {_WAY_OUT}")
    number = draws if draws is not None else asked.get("runs")
    if number is not None:
        found = _drawn(file, grid, number, seed if seed is not None else asked.get("seed", 0))
    elif ranges := [key for key, values in grid.items() if isinstance(values, dict)]:
        raise UsageError(f"{file}: {ranges[0]} is a range, of which runs are drawn; write random: {{runs: 20, seed: 0}} too")
    else:
        found = list(itertools.product(*grid.values()))
    return [[f"{key}={_text(value)}" for key, value in zip(grid, values, strict=True)] for values in found]


def point(file: Path, index: int) -> list[str]:
    """The overrides of the run with this number, from 0. Raises UsageError if there are fewer."""
    found = points(file)
    if index >= len(found):
        raise UsageError(f"--array: found index {index}, and {file} has {len(found)} runs; write --array=0-{len(found) - 1}")
    return found[index]


def names(sweep: str, found: list[list[str]]) -> list[str]:
    """What the runs of a sweep are called: by its name and their own values, so that a grid may grow and keep its runs.

    What no file should be called by is left out of a name, which then ends in a checksum of all.
    """
    keys = {word.partition("=")[0] for words in found for word in words}
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name := key.rpartition(".")[2]) == 1 else key for key in keys}
    made = []
    for words in found:
        whole = ",".join(f"{short[key]}={value}" for key, _, value in (word.partition("=") for word in words))
        plain = re.sub(r"[^\w.,=+-]+", "_", whole)[:_LONGEST_NAME]
        mark = "" if plain == whole else f",{hashlib.sha256(shlex.join(words).encode()).hexdigest()[:8]}"
        made.append(f"{sweep}-{plain}{mark}")
    return made


def configs(config_path: str, found: list[tuple[str, ...]], file: Path) -> tuple[list[Config], list[str]]:
    """The config of each run with its overrides, and a line for each mistake that only some of them have."""
    made, mistakes = [], dict[str, int]()
    for number, overrides in enumerate(found):
        try:
            made.append(load_config(config_path, overrides)[0])
        except UsageError as error:
            for line in error.lines:
                mistakes.setdefault(line, number)
    return made, [f"{file}, run {number}: {line}" for line, number in mistakes.items()]


def _lines(file: Path, text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    try:
        found = [shlex.split(line) for line in lines]
    except ValueError as error:
        raise UsageError(f"{file}: a line cannot be read ({error}); write key=value words, a line for each run") from None
    wrong = [word for words in found for word in words if "=" not in word]
    if wrong or not found:
        raise UsageError(f"{file}: found {wrong[0] if wrong else 'no line'}; write key=value words, a line for each run")
    return found


def _asked(file: Path, said: Any) -> dict[str, int]:
    """What the file says of random draws; nothing where it has no word on them."""
    if said is None:
        return {}
    whole = isinstance(said, dict) and "runs" in said and {*said} <= {"runs", "seed"}
    if not whole or not all(type(value) is int and value >= 0 for value in said.values()) or said["runs"] < 1:
        raise UsageError(f"{file}: random: found {said!r}; write {{runs: 20, seed: 0}}")
    return dict(said)


def _is_list(values: Any) -> bool:
    return isinstance(values, list) and bool(values)


def _is_range(values: Any) -> bool:
    if not isinstance(values, dict) or not {"min", "max"} <= {*values} <= {"min", "max", "log"}:
        return False
    low, high, log = values["min"], values["max"], values.get("log", False)
    numbers = all(type(end) in (int, float) and math.isfinite(end) for end in (low, high))
    return numbers and type(log) is bool and low < high and (low > 0 or not log)


def _drawn(file: Path, grid: dict[str, Any], number: int, seed: int) -> list[tuple[Any, ...]]:
    """So many different points of a grid, one after another."""
    lists = [len(values) for values in grid.values() if isinstance(values, list)]
    most = math.prod(lists) if len(lists) == len(grid) else number
    generator, found = random.Random(seed), dict[str, tuple[Any, ...]]()
    for _ in range(1000 * min(number, most)):  # ranges of a few integers have an end too
        values = tuple(_draw(choice, generator.random()) for choice in grid.values())
        found.setdefault(json.dumps(values), values)
        if len(found) == number:
            return list(found.values())
    raise UsageError(f"{file}: found {number} runs to draw, and it has {len(found)}; write --random {len(found)} or fewer")


def _draw(choice: Any, part: float) -> Any:
    """The value at a part, from 0 to 1, of a list or a range."""
    if isinstance(choice, list):
        return choice[int(part * len(choice))]
    low, high = choice["min"], choice["max"]
    if type(low) is int and type(high) is int:
        above = (
            math.exp(math.log(low) + part * math.log((high + 1) / low)) if choice.get("log") else low + part * (high + 1 - low)
        )
        return min(int(above), high)
    value = math.exp(math.log(low) + part * math.log(high / low)) if choice.get("log") else low + part * (high - low)
    return float(f"{value:.4g}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
