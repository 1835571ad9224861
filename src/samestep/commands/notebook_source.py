"""The source of a class that was typed into a notebook, whose other processes have to import it from a file."""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from samestep.errors import UsageError

_INTO_A_FILE = "put the class into a file, by a cell that begins with %%writefile mine.py, and import it from there"


def source_of(kind: type) -> str:
    """A file that defines a class of the notebook's, with its imports and what else it uses of other cells.

    Raises UsageError for what no file can hold: an object that was made in the notebook.
    """
    parts: dict[str, str] = {}
    _add(parts, kind.__name__, kind, kind.__name__)
    is_deferred = any(function.__code__.co_flags & __future__.annotations.compiler_flag for function in _functions(kind))
    imports = [text for text in parts.values() if text.startswith(("import ", "from "))]
    others = [text for text in parts.values() if text not in imports]
    head = ["from __future__ import annotations\n"] if is_deferred else []
    return "\n\n\n".join(["\n".join([*head, *imports]), *others]) + "\n"


def _add(parts: dict[str, str], name: str, value: Any, user: str) -> None:
    """Add what defines a global name, after all that it uses itself."""
    if isinstance(value, ModuleType):
        parts[name] = f"import {value.__name__}" + ("" if name == value.__name__ else f" as {name}")
        return
    home, own_name = getattr(value, "__module__", None), getattr(value, "__name__", "")
    if isinstance(value, type | FunctionType) and home == "__main__":
        text = _definition(value)
        parts[name] = ""  # it is under way: two functions may call each other
        cells = vars(sys.modules["__main__"])
        for used in _globals(symtable.symtable(text, name, "exec")):
            if used in cells and used not in parts:
                _add(parts, used, cells[used], name)
        del parts[name]
        parts[name] = text
    elif home and getattr(sys.modules.get(home), own_name, None) is value:
        parts[name] = f"from {home} import {own_name}" + ("" if name == own_name else f" as {name}")
    elif _is_plain(value):
        parts[name] = f"{name} = {value!r}"
    else:
        raise UsageError(
            f"samestep.train: {user} uses {name}, which was made in this notebook ({type(value).__name__}); make it inside the "
            f"class, or {_INTO_A_FILE}"
        )


def _definition(value: type | FunctionType) -> str:
    """The text of a class or function, from the cell that it was typed into."""
    for function in _functions(value):
        lines = linecache.getlines(function.__code__.co_filename)
        found = [
            node
            for node in ast.walk(ast.parse("".join(lines)))
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == value.__name__
        ]
        if found:
            first = min([found[-1].lineno, *(decorator.lineno for decorator in found[-1].decorator_list)])
            return textwrap.dedent("".join(lines[first - 1 : found[-1].end_lineno])).rstrip()
    raise UsageError(f"samestep.train: found no source of {value.__name__}; {_INTO_A_FILE}")


def _functions(value: type | FunctionType) -> Iterator[FunctionType]:
    for each in [value] if isinstance(value, FunctionType) else vars(value).values():
        function = inspect.unwrap(getattr(each, "__func__", getattr(each, "fget", each)))
        if isinstance(function, FunctionType):
            yield function


def _globals(table: symtable.SymbolTable) -> list[str]:
    """The names that a text takes from outside itself; a parameter of the same name is none of them."""
    at_top = table.get_type() == "module"
    own = [symbol.get_name() for symbol in table.get_symbols() if (symbol.is_referenced() if at_top else symbol.is_global())]
    return [*own, *(name for child in table.get_children() for name in _globals(child))]


def _is_plain(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
