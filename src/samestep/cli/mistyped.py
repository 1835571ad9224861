"""What click has to say about mistyped words, in one line and in our form."""

from __future__ import annotations

import click

from samestep.errors import UsageError


def in_one_line(error: click.ClickException) -> UsageError:
    """The command, what was found, and where its words are explained."""
    context = getattr(error, "ctx", None)
    words: list[str] = []
    while context is not None and context.parent is not None:
        words.insert(0, str(context.info_name))
        context = context.parent
    if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2 and newer
        return UsageError("found no command; samestep --help shows them all")
    found = error.format_message().replace("\n", " ").rstrip(".")
    found = found.replace(". (Did", "; (did").replace(". Did", "; did").replace("(did", "did").replace("?)", "?")
    found = found[:1].lower() + found[1:]
    return UsageError(f"{''.join(f'{word}: ' for word in words)}{found}; {' '.join(['samestep', *words])} --help shows how")
