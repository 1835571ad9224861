"""Words in, words out, exit codes. Nothing here imports torch until a command needs it."""

from samestep.cli.root import cli, main

__all__ = ["cli", "main"]
