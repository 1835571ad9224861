"""Writes docs/config.md from the schema and src/samestep/config/meanings.py: python docs/make_config.py."""

from __future__ import annotations

from pathlib import Path

from samestep.config import ON_A_BRANCH
from samestep.config.reference import keys
from samestep.config.resume import _PARTS_BITS, FREE_ON_RESUME

TARGET = Path(__file__).with_name("config.md")
_HEAD = """# Every key of a config

Made by `docs/make_config.py` from `src/samestep/config/schema.py` and `src/samestep/config/meanings.py`; change it there.

A config is YAML; `key=value` on the command line is laid over it, a key within another with a dot: `optimizer.lr=3e-3`. It is
validated strictly, and a key that nobody knows names the nearest one. Each run keeps the whole of it in `config.yaml`, with a
comment on where each value came from. A file that `task`, `with`, `init`, `schedule` or `track.also` names is looked for in the
working folder, and else beside the config.

`N epochs` is `2 epochs`, say, or `0.5 epochs`: the nearest number of steps, at least 1.

The last column is what may change where a run branches from another (`docs/branch.md`); where it says nothing, a key is as the
one that it stands in.

| key | may be | default | meaning | on a branch |
|---|---|---|---|---|
"""
_TAIL = """
When a run goes on, {free} may have changed, and `steps` or `epochs` may have grown under a schedule that does not depend on the
run's end: `constant`, `step`, `exponential`, `inverse_sqrt`, `restarts` and `plateau`, but for a warm-up by a part of the run.
Under `plateau`, `evaluate` is a part of the maths. {parting}
may have changed too: the run says that the bits part there. All else is part of the maths, and a change is refused.
"""


def text() -> str:
    rows = (
        f"| `{key.name}` | {key.values} | {key.default} | {key.meaning} | {ON_A_BRANCH.get(key.name, '')} |" for key in keys()
    )
    return _HEAD + "\n".join(rows) + "\n" + _TAIL.format(free=_names(FREE_ON_RESUME), parting=_names(_PARTS_BITS))


def _names(found: set[str]) -> str:
    *others, last = (f"`{name}`" for name in sorted(found))
    return f"{', '.join(others)} and {last}"


if __name__ == "__main__":
    TARGET.write_text(text())
