"""The version of samestep: said by its face, by `--version`, on a report's page."""

__version__ = "0.1.0"
