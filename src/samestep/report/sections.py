"""The parts of a page about one run."""

from __future__ import annotations

import numpy as np

from samestep.report.markup import Markup, duration, joined, moment, number, plain, tag
from samestep.report.record import Record
from samestep.report.timeline import Start, mean_steps_per_s, starts_of, time_split

_SPENT = {
    "training": "steps that the run still holds",
    "waiting for data": "the main process had no micro-batch ready",
    "evaluation": "after a tracked step, up to its row",
    "redone": "steps after the last checkpoint before a kill: taken again by a later start",
    "starting": "from a process's start to the first step: imports, data, model, checkpoint",
    "ending": "from a start's last step to its last sign of life: the last save, above all",
    "down": "between two starts: killed, stopped, or in a queue",
}


def spent(record: Record) -> dict[str, float]:
    """Seconds by what they went to, in the order of `_SPENT`; empty where the folder does not tell."""
    found = time_split(record, starts_of(record))
    waits = record.curves.get("data_wait_s")
    if found and waits is not None:
        found["waiting for data"] = min(float(np.nansum(waits.values)), found["training"])
        found["training"] -= found["waiting for data"]
    return {name: found[name] for name in _SPENT if found.get(name, 0.0) >= 0.005}


def goodput(record: Record) -> float:
    """The share of a run's time in which it took steps that count, of all from the first launch on. NaN if unknown."""
    found = spent(record)
    return found.get("training", 0.0) / sum(found.values()) if found else float("nan")


def tiles(record: Record) -> Markup:
    """The numbers that one looks for first."""
    curves, found = record.curves, spent(record)
    pairs = [("loss", number(curves["loss"].last), f"step {int(curves['loss'].steps[-1]):,}")] if "loss" in curves else []
    for key, curve in curves.items():
        if key.startswith("eval_"):
            pairs.append((key, number(curve.last), f"step {int(curve.steps[-1]):,}"))
    if best := record.state.get("best"):
        pairs.append((f"best {best['metric']}", number(best["value"]), f"step {best['step']:,}, kept"))
    for key, curve in curves.items():
        if key.endswith("_per_s"):
            pairs.append((f"{key.removesuffix('_per_s')} per second", number(float(np.nanmedian(curve.values))), "median"))
    pace = mean_steps_per_s(record)
    if np.isfinite(pace):
        pairs.append(("steps per second", number(pace), "without evaluation"))
    if found:
        pairs.append(("goodput", f"{100 * goodput(record):.0f} %", f"of {duration(sum(found.values()))}"))
    pairs.append(("restarts", str(max(len(record.starts) - 1, 0)), ""))
    return tag("div", *(_tile(*pair) for pair in pairs), class_="tiles")


def _tile(label: str, value: str, below: str) -> Markup:
    parts = label.split("_")  # a line may end behind one, and nowhere else in a name
    words = [part for word in parts[:-1] for part in (f"{word}_", Markup("<wbr>"))]
    return tag("div", tag("b", value), tag("span", *words, parts[-1]), tag("small", below), class_="tile")


def where_time_went(record: Record) -> Markup:
    """A bar of shares with its table; nothing where the folder does not tell."""
    found = spent(record)
    total = sum(found.values())
    if not total:
        return Markup("")
    places = {name: place for place, name in enumerate(_SPENT)}
    bar = [tag("i", class_=f"t{places[name]}", style=f"flex-grow:{seconds / total:.5f}") for name, seconds in found.items()]
    rows = [
        tag(
            "tr",
            tag("td", tag("i", class_=f"dot t{places[name]}"), name),
            tag("td", duration(seconds), class_="n"),
            tag("td", f"{100 * seconds / total:.1f} %", class_="n"),
            tag("td", _SPENT[name], class_="words"),
        )
        for name, seconds in found.items()
    ]
    note = f"{duration(total)} from the first launch to the last sign of life. Goodput is the share of training."
    return section("Where the time went", tag("div", *bar, class_="bar"), scrolled(rows), tag("p", note, class_="note"))


def starts(record: Record) -> Markup:
    """A line for each start: where, when, how far, and how it ended."""
    found = starts_of(record)
    if not found:
        return Markup("")
    titles = ("", "began (UTC)", "host", "processes", "from step", "to step", "steps kept", "up for", "end")
    return section("Starts", wide(titles, [_start(start, len(found)) for start in found]))


def _start(start: Start, count: int) -> tuple[object, ...]:
    job = f", job {start.facts['job']}" if start.facts.get("job") else ""
    return (
        start.number,
        moment(start.begun),
        f"{start.facts.get('host', '-')}{job}",
        start.facts.get("world_size", "-"),
        f"{start.resumed_from:,}",
        f"{max(start.furthest, start.resumed_from + start.kept):,}",
        f"{start.kept:,}",
        duration(start.ended - start.launched),
        "killed" if start.end == "running" and start.number < count else start.end,
    )


def config(record: Record) -> Markup:
    """Every key with its value and where that came from; defaults are faint."""
    rows = []
    for key, value in record.config.items():
        origin = record.origin(key)
        cells = (tag("th", key), tag("td", plain(value)), tag("td", origin))
        rows.append(tag("tr", *cells, class_="faint" if origin == "default" else None))
    return section("Config", scrolled(rows)) if rows else Markup("")


def machine(record: Record) -> Markup:
    """What the bits depend on beside the config, as state.json has it."""
    state = record.state
    rows = [("weights (SHA-256)", state.get("weights")), *(state.get("kind") or {}).items()]
    rows += [(f"code: {name}", digest) for name, digest in (state.get("code") or {}).items()]
    if (origin := state.get("parent")) is not None:
        rows.append(("branch of", f"{origin['run']}, after step {origin['step']}"))
    rows += [("processes", state.get("world_size")), ("host", state.get("host")), ("folder", record.name)]
    lines = [tag("tr", tag("th", key), tag("td", value, class_="mono")) for key, value in rows if value is not None]
    return section("Machine and code", scrolled(lines))


def shown(record: Record) -> Markup:
    """What the task showed of its trained model."""
    return section("Shown at the end", tag("pre", record.shown)) if record.shown else Markup("")


def reason(record: Record) -> Markup:
    """Why the run is not done, in the run's own words."""
    words = record.state.get("reason")
    return tag("p", words, class_=f"reason {record.status}") if words else Markup("")


def section(title: str, *inner: object) -> Markup:
    return tag("section", tag("h2", title), *inner)


def scrolled(rows: list[Markup]) -> Markup:
    """A table in which no word is broken: where the page is narrower, it is moved."""
    return tag("div", tag("table", *rows), class_="scroll")


def wide(titles: tuple[object, ...], rows: list[tuple[object, ...]]) -> Markup:
    """A table that may be broader than the page."""
    head = tag("tr", *(tag("th", title, scope="col") for title in titles))
    body = joined(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll")
