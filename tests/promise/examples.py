"""Runs that failed once, each a line that its failure printed; they run before any that is drawn."""

LINES: list[str] = []
