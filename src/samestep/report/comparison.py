"""The parts of a page about several runs: one table to sort, and what their configs share."""

from __future__ import annotations

import math
from typing import Any

from samestep.report import sections
from samestep.report.markup import Markup, duration, number, plain, tag
from samestep.report.record import Record
from samestep.report.timeline import mean_steps_per_s

_NOT_COMPARED = {"runs"}  # where runs lie


def differing(records: list[Record]) -> list[str]:
    """The config's dotted keys that do not have one value in all runs."""
    keys = list(dict.fromkeys(key for record in records for key in record.config))
    kept = [key for key in keys if key.partition(".")[0] not in _NOT_COMPARED]
    return [key for key in kept if len({plain(record.config.get(key)) for record in records}) > 1]


def table(records: list[Record]) -> Markup:
    """A line for each run: what is its own in the config, and its last numbers. A click on a title sorts by it."""
    keys, names = differing(records), _names(records)
    titles = ["run", "state", "step", *keys, *names, "steps/s", "time", "goodput", "restarts", "weights"]
    rows = [tag("tr", *_cells(number, record, keys, names), data_run=number) for number, record in enumerate(records)]
    head = tag("tr", *(tag("th", tag("button", title), scope="col") for title in titles))
    whole = tag("table", tag("thead", head), tag("tbody", *rows), class_="runs")
    note = "Click a title to sort, and a run's colour to draw it or leave it grey. Numbers are each run's last."
    return sections.section("Runs", tag("div", whole, class_="scroll"), tag("p", note, class_="note"))


def _names(records: list[Record]) -> list[str]:
    """The metrics that have a column: the loss, and those of evaluation."""
    found = sorted({key for record in records for key in record.curves if key.startswith("eval_")})
    return ["loss", *found] if any("loss" in record.curves for record in records) else found


def _cells(place: int, record: Record, keys: list[str], names: list[str]) -> list[Markup]:
    mark = tag("button", class_="mark", data_run=place, title="draw this run")
    cells = [tag("td", mark, record.name, data_v=record.name), _text(record.status), _number(record.step)]
    cells += [_setting(record.config.get(key)) for key in keys]
    cells += [_number(record.curves[name].last if name in record.curves else math.nan) for name in names]
    total, share = sum(sections.spent(record).values()), sections.goodput(record)
    cells += [_number(mean_steps_per_s(record)), _number(total or math.nan, duration(total) if total else "-")]
    cells += [_number(share, f"{100 * share:.0f} %" if total else "-"), _number(max(len(record.starts) - 1, 0))]
    weights = str(record.state.get("weights") or "")
    return [*cells, tag("td", weights[:8] or "-", class_="mono", title=weights or None, data_v=weights)]


def _number(value: float, words: str | None = None) -> Markup:
    return tag("td", number(value) if words is None else words, class_="n", data_v=value if math.isfinite(value) else "")


def _setting(value: Any) -> Markup:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, plain(value))
    return _text("-" if value is None else plain(value))


def _text(words: str) -> Markup:
    return tag("td", words, data_v=words)


def same_config(records: list[Record]) -> Markup:
    """What all runs have in common."""
    parted = set(differing(records)) | _NOT_COMPARED
    same: dict[str, Any] = {key: value for key, value in records[0].config.items() if key not in parted}
    lines = [tag("tr", tag("th", key), tag("td", plain(value))) for key, value in same.items()]
    return tag("section", tag("details", tag("summary", tag("h2", "The same in all configs")), sections.scrolled(lines)))


def each(records: list[Record]) -> Markup:
    """What one run's page has beside the curves, folded up."""
    parts = (sections.reason, sections.where_time_went, sections.starts, sections.machine, sections.shown)
    folded = [tag("details", tag("summary", record.name), *(part(record) for part in parts)) for record in records]
    return sections.section("Each run", *folded)
