"""HTML from values that users wrote: all of it escaped, here and nowhere else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *inner: object, **attributes: object) -> Markup:
    """An element; what is inside and no Markup is escaped. `data_v` is written data-v, and `class_` class; None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{joined(inner)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in parts))


def script_text(value: object) -> str:
    """JSON that no reader of HTML takes for a tag, and that has no NaN."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value: float) -> str:
    """Four significant digits; what is not finite is a hyphen."""
    if not math.isfinite(value):
        return "-"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:,.0f}" if abs(value) >= 1e4 or value == int(value) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """In the two largest units that fit."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(unix_s: float | None) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S") if unix_s else "-"


def plain(value: Any) -> str:
    """A config's value as one would type it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
