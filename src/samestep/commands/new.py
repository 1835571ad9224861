"""`samestep new`: a task and its config to begin with, which train at once."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from samestep.errors import UsageError, shortened
from samestep.runtime.shipped import shipped

LIKES = ("points", "text", "images", "table", "transformers", "lora", "contrastive")


def new(path: str, like: str = LIKES[0]) -> str:
    """Write PATH.py and PATH.yaml. Returns what to type next. Raises UsageError if either is there already.

    Args:
        like: which of `templates/`.
    """
    if not Path(path).stem.strip(".") or "\0" in path:
        raise UsageError(f"PATH: found {path!r}; write a name, mine say")
    task = Path(path).with_suffix(".py")
    config = task.with_suffix(".yaml")
    if task.stem.isidentifier() and not task.exists() and _is_module(task.stem):
        raise UsageError(
            f"{task}: found a module called {task.stem}, and one of the two would hide the other; write another name"
        )
    words = "".join(word[:1].upper() + word[1:] for word in re.split(r"[\W_]+", task.stem))
    name = words if words.isidentifier() else f"My{words}"
    template = shipped() / "templates" / like
    try:
        for file in (task, config):
            if file.exists():
                raise UsageError(f"{file}: it is there already; write another name")
        task.parent.mkdir(parents=True, exist_ok=True)
        text = template.with_suffix(".py").read_text()
        task.write_text(re.sub(r"^class Mine\(", f"class {name}(", text, count=1, flags=re.MULTILINE))
        text = template.with_suffix(".yaml").read_text().replace("mine.yaml", str(config))
        config.write_text(text.replace("mine.py:Mine", f"{task}:{name}"))
    except OSError as error:
        raise UsageError(f"PATH: {shortened(str(task))} can't be written ({error.strerror}); write another path") from None
    return f"wrote {task} and {config}; next: samestep train {config}"


def _is_module(name: str) -> bool:
    """Whether `import name` finds a module; a folder that only happens to be called so is none."""
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
