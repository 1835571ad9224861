"""The task that a config names: its module, read from a file or imported, its class, and its fields."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from samestep.errors import UsageError, nearest_few, place_in_user_code, validation_lines
from samestep.run.snapshot import as_kept, kept_code
from samestep.task import Task

TASK_MODULE = "samestep_task_"  # what the module of a task's own file is called, before the file's name
BUILT_IN = {"regression": "Regression", "text": "Text", "digits": "Digits"}
_METHODS = ("data", "model", "loss", "metrics", "weights", "transform", "collate", "optimizer", "after_step", "show", "export")
_CLASSES_NAMED = 3
_loaded: dict[tuple[str, int, int], ModuleType] = {}


def load_task(spec: str, fields: dict[str, Any]) -> Task:
    """The task named by a config, made with its `with` fields; UsageError says what is wrong with either."""
    task_class = _task_class(spec)
    try:
        return task_class(**fields)
    except ValidationError as error:
        raise UsageError(*validation_lines(error, task_class, prefix="with.")) from None
    except Exception as error:
        words = f"{type(error).__name__}: {error}{place_in_user_code(error)}"
        raise UsageError(
            f"task: {spec} cannot be made ({words}); write its hyperparameters as fields, width: int = 32, and no __init__"
        ) from None


def _task_class(spec: str) -> type[Task]:
    if spec in BUILT_IN:
        spec = f"samestep.tasks.{spec}:{BUILT_IN[spec]}"
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(f"task: found {spec!r}; write module:Class, path/to/file.py:Class, or one of {', '.join(BUILT_IN)}")
    module = load_module(place)
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if _is_task(value)]
        close = nearest_few(name, classes) or classes[:_CLASSES_NAMED]
        hint = (
            f"did you mean {' or '.join(f'{place}:{one}' for one in close)}?"
            if close
            else "it defines no subclass of samestep.Task"
        )
        raise UsageError(f"task: {place} has no class {name}; {hint}")
    if not _is_task(found):
        raise UsageError(f"task: {spec} is not a task; write a class derived from samestep.Task")
    task_class: type[Task] = found
    if hidden := [name for name in task_class.model_fields if callable(getattr(Task, name, None))]:
        raise UsageError(f"task: {spec} has a field {hidden[0]}, which hides the method of that name; give it another name")
    needed = [method for method in ("data", "model", "loss") if getattr(task_class, method) is getattr(Task, method)]
    if needed:
        raise UsageError(f"task: {spec} lacks {', '.join(needed)}; write each as a method of the class (docs/tasks.md)")
    if wrong := [line for method in _METHODS if (line := _wrong_arguments(spec, task_class, method))]:
        raise UsageError(*wrong)
    return task_class


def _wrong_arguments(spec: str, task_class: type[Task], method: str) -> str | None:
    """The line about a method that cannot be called as samestep does."""
    wanted, found = (inspect.signature(getattr(kind, method)) for kind in (Task, task_class))
    try:
        found.bind(*wanted.parameters)
    except TypeError:
        names = ", ".join(wanted.parameters)
        return f"task: {spec} has {method}({', '.join(found.parameters)}); write def {method}({names})"
    return None


def _is_task(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Task) and value is not Task


def load_module(place: str, key: str = "task") -> ModuleType:
    """The module that a place under `key` names: `module`, or `path/to/file.py`, read once as long as it stays as it is."""
    what = "Class" if key == "task" else "function"
    if not place.endswith(".py"):
        for folder in filter(None, (Path.cwd(), kept_code())):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(place)
        except Exception as error:
            name = error.name if isinstance(error, ModuleNotFoundError) else None
            if name and (place == name or place.startswith(name + ".")):
                looked = f"in {Path.cwd()} or among what is installed"
                advice = f"write module:{what} or path/to/file.py:{what}"
                raise UsageError(f"{key}: found no module {place} {looked}; {advice}") from None
            raise raised_in(key, place, error) from None
    path = as_kept(place)
    if not path.is_file():
        looked = "" if path.is_absolute() else f" in {Path.cwd()} or beside the config"
        raise UsageError(f"{key}: found no file {place}{looked}; write path/to/file.py:{what}")
    if str(path.parent.resolve()) not in sys.path:  # the file's neighbours are importable, as when it is run itself
        sys.path.insert(0, str(path.parent.resolve()))
    status = path.stat()
    stamp = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if stamp in _loaded:
        return _loaded[stamp]
    name = f"{TASK_MODULE}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves a class's annotations through it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise raised_in(key, place, error) from None
    _loaded[stamp] = module
    return module


def raised_in(key: str, place: str, error: BaseException) -> UsageError:
    """What importing a module of the user's came to, in one line."""
    if isinstance(error, UsageError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name:
        return UsageError(f"{key}: {place} imports {error.name}, which is not installed here")
    if isinstance(error, ImportError) and "relative import" in str(error) and place.endswith(".py"):
        return UsageError(
            f"{key}: {place} is a file of a package, and imports relatively; write {_dotted(place)}:"
            f"{'Class' if key == 'task' else 'function'}"
        )
    if isinstance(error, SyntaxError):
        is_own = not error.filename or Path(error.filename).resolve() == Path(place).resolve()
        line = f" line {error.lineno}" if error.lineno else ""
        return UsageError(f"{key}: {place if is_own else error.filename}{line}: {error.msg}")
    if getattr(error, "code", None) == "model-field-missing-annotation":  # pydantic's
        field = str(error).partition("`")[2].partition("`")[0]
        return UsageError(
            f"task: {place}: the field {field} has no type; write {field.replace(' =', ': TYPE =', 1)}, its type for TYPE"
        )
    words = str(error).splitlines()[0] if str(error) else "no more is said"
    return UsageError(f"{key}: {place} cannot be imported: {type(error).__name__}: {words}{place_in_user_code(error)}")


def _dotted(place: str) -> str:
    """A file of a package as a module: by its folders from the working folder on."""
    path = Path(place).resolve()
    below = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(place)
    return ".".join(below.with_suffix("").parts)
