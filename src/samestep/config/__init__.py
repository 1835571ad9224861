"""The config: YAML, then `key=value`; strict, frozen, and each value remembers where it came from."""

from samestep.config.branching import ON_A_BRANCH, Branching
from samestep.config.reading import load_config, parse_yaml, read_text, validated
from samestep.config.resume import changes_on_resume, compared, done_already, done_words, dotted, maths
from samestep.config.schedule import Schedule
from samestep.config.schema import Checkpoint, Config, Converge, Optimizer, Profile, Track
from samestep.config.writing import plain_text, to_text

__all__ = [
    "ON_A_BRANCH",
    "Branching",
    "Checkpoint",
    "Config",
    "Converge",
    "Optimizer",
    "Profile",
    "Schedule",
    "Track",
    "changes_on_resume",
    "compared",
    "done_already",
    "done_words",
    "dotted",
    "load_config",
    "maths",
    "parse_yaml",
    "plain_text",
    "read_text",
    "to_text",
    "validated",
]
