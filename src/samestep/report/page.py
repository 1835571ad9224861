"""One HTML file: text and tables as they are, curves as JSON, and uPlot to draw them."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from pathlib import Path

from samestep.report import comparison, sections
from samestep.report.markup import Markup, moment, script_text, tag
from samestep.report.plots import plots
from samestep.report.record import Record
from samestep.runtime.version import __version__

_HERE = Path(__file__).parent
_MOST_BYTES = 480_000
_MOST_POINTS = 48_000  # all curves together, at first; a point takes 12 to 20 bytes
_HINT = "Drag over a plot to zoom, double-click to see all again. Dashed lines are restarts."
_COLOURS = 8  # runs that are drawn in colour at first
_MOST_FOLDED = 12  # runs with a part of their own on a page of several


def page(records: list[Record]) -> str:
    """The runs' page, with as many points as make it less than half a megabyte."""
    points = _MOST_POINTS
    while len(text := _page(records, points).encode()) > _MOST_BYTES and points > 100:
        points //= 2
    return text.decode()


def _page(records: list[Record], points: int) -> str:
    one = records[0] if len(records) == 1 else None
    data = {"names": [record.name for record in records], "drawn": _drawn(records), "plots": plots(records, points)}
    data["restarts"] = [[start["resumed_from"] for start in record.starts[1:]] for record in records]
    scripts = [(_HERE / name).read_text() for name in ("theme.js", "uPlot.iife.min.js", "page.js")]
    styles = [(_HERE / name).read_text() for name in ("uPlot.min.css", "page.css")]
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"  # nothing is fetched, nothing else runs
    title = one.name if one else f"{len(records)} runs"
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"{title} - samestep"),
        *(tag("style", Markup(text)) for text in styles),
        tag("script", Markup(scripts[0])),
    )
    body = tag(
        "body",
        _header(title, records),
        tag("main", *(_of_one(one) if one else _of_several(records))),
        tag("footer", f"{_HINT} samestep {__version__} made this page on {moment(time.time())} UTC."),
        tag("script", Markup(script_text(data)), type="application/json", id="data"),
        Markup(f"<!-- uPlot's licence:\n{(_HERE / 'uPlot.LICENSE').read_text()}-->"),
        *(tag("script", Markup(text)) for text in scripts[1:]),
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def _header(title: str, records: list[Record]) -> Markup:
    switch = tag("button", "◐", id="theme", title="dark or light", aria_label="dark or light")
    if len(records) > 1:
        return tag("header", tag("h1", title), switch)
    record = records[0]
    total = f" of {record.state['num_steps']:,}" if record.state.get("num_steps") else ""
    since = f", began {moment(record.starts[0]['time'])} UTC" if record.starts else ""
    badge = tag("span", record.status, class_=f"badge {record.status}")
    return tag("header", tag("h1", title), badge, tag("span", f"step {record.step:,}{total}{since}", class_="faint"), switch)


_PLOTS = Markup('<section id="plots"></section>')


def _of_one(record: Record) -> tuple[Markup, ...]:
    parts = (sections.where_time_went, sections.starts, sections.shown)
    beside = tag("div", sections.config(record), sections.machine(record), class_="beside")
    return (sections.reason(record), sections.tiles(record), _PLOTS, *(part(record) for part in parts), beside)


def _of_several(records: list[Record]) -> tuple[Markup, ...]:
    folded = (comparison.each(records),) if len(records) <= _MOST_FOLDED else ()
    return (comparison.table(records), _PLOTS, comparison.same_config(records), *folded)


def _drawn(records: list[Record]) -> list[int]:
    """The runs in colour at first: all, or those with the least last loss."""

    def last_loss(number: int) -> float:
        curves = records[number].curves
        curve = curves.get("eval_loss") or curves.get("loss")
        return curve.last if curve and math.isfinite(curve.last) else math.inf

    return sorted(sorted(range(len(records)), key=last_loss)[:_COLOURS])
