"""`accelerate launch` inside this process, for the scripts that start several ranks."""

from __future__ import annotations

import signal

_ENDED_BY_A_SIGNAL = 128  # and its number on top, as shells have it


def launch(words: tuple[str, ...]) -> int:
    """Start the ranks that `words` describe, and wait for them. Returns the exit code."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # Under nohup: torch would set a handler of its own, which a blocked signal never reaches, here and in the ranks.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from accelerate.commands.launch import launch_command, launch_command_parser

    try:
        launch_command(launch_command_parser().parse_args(list(words)))
    except Exception as error:
        number = getattr(error, "sigval", None)  # torch's SignalException: the ranks have had that signal too, and are gone
        if number is None:
            raise
        return _ENDED_BY_A_SIGNAL + int(number)
    return 0
