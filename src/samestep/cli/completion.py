"""What the shell offers when Tab is pressed: runs, configs, and the keys of a config. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class


class _Words(click.types.StringParamType):
    """An argument that takes any text, and has some to offer."""

    def offered(self, start: str) -> Iterator[CompletionItem]:
        raise NotImplementedError

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [item for item in self.offered(incomplete) if item.value.startswith(incomplete)]


class _Run(_Words):
    def offered(self, start: str) -> Iterator[CompletionItem]:
        for path in sorted(Path("runs").glob("*/state.json")):
            yield CompletionItem(path.parent.name)


class _Config(_Words):
    def offered(self, start: str) -> Iterator[CompletionItem]:
        from samestep.runtime.shipped import shipped_configs

        folder = start.rpartition("/")[0]
        for path in sorted(Path(folder).glob("*")):
            if path.is_dir() and not path.name.startswith("."):
                yield CompletionItem(f"{path}/")
            elif path.suffix in (".yaml", ".yml", ".py"):
                yield CompletionItem(str(path))
        yield from map(CompletionItem, shipped_configs())


class _Key(_Words):
    def offered(self, start: str) -> Iterator[CompletionItem]:
        from samestep.config.reference import keys

        for key in keys():
            if key.name.count(".") == start.count("."):  # optimizer. first, then what is in it
                yield CompletionItem(f"{key.name}{'.' if key.has_keys else '='}", help=key.meaning)


class _ConfigOrKey(_Words):
    def offered(self, start: str) -> Iterator[CompletionItem]:
        yield from _Config().offered(start)
        yield from _Key().offered(start)


class _Bash(BashComplete):
    """No blank after what goes on: a folder, `optimizer.`, `steps=`. Another template of click's is left as it is."""

    source_template = BashComplete.source_template.replace(
        "    return 0", "    [[ ${COMPREPLY[0]:-} == *[/.=] ]] && compopt -o nospace\n    return 0"
    )


_OFFERED: dict[str, _Words] = {
    "config": _Config(), "run": _Run(), "run_a": _Run(), "run_b": _Run(), "overrides": _Key(), "words": _ConfigOrKey(),
}  # fmt: skip


def add_completion(cli: click.Group) -> None:
    """Let every command's arguments, and its --run, offer what their names say."""
    add_completion_class(_Bash)
    for command in cli.commands.values():
        for parameter in command.params:
            if parameter.name in _OFFERED and not command.hidden:
                parameter.type = _OFFERED[parameter.name]
