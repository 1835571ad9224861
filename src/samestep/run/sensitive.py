"""What looks like a secret, by its name or by a line in it, and so goes into no copy of the code."""

from __future__ import annotations

import collections
import fnmatch
import math
import re
from pathlib import Path

_NAMES = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd", "kubeconfig*",
    "credentials", "client_secret*.json", "service[-_]account*.json",
    *(f"{stem}.{suffix}" for stem in ("credentials", "secret", "secrets") for suffix in ("json", "yaml", "yml", "toml", "txt")),
)  # fmt: skip
# As those who issue them publish them, for scanners to know: what stands before the part that is drawn.
_PREFIXED = re.compile(
    rb"\b(?:AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|hf_|sk-(?:ant-|proj-)?|xox[abeprs]-|AIza|[rs]k_live_|npm_|pypi-|wandb_v1_)"
    rb"(?P<drawn>[A-Za-z0-9_-]{16,})"
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_LEAST_BITS = 3.0  # a character: drawn ones have about four or more; a placeholder of one letter has none


def why_secret(path: Path) -> str | None:
    """Why a file looks like a secret, as `its name` or `line 3`; None if it does not."""
    if any(fnmatch.fnmatchcase(path.name.lower(), pattern) for pattern in _NAMES):
        return "its name"
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if _PRIVATE_KEY.search(line) or any(_bits(found["drawn"]) >= _LEAST_BITS for found in _PREFIXED.finditer(line)):
            return f"line {number}"
    return None


def left_out(secrets: dict[str, str], where: str) -> str:
    """The line that says which files were left out of a copy, and why.

    Args:
        secrets: why each looks like one, by name.
    """
    files = ", ".join(f"{name} ({why})" for name, why in sorted(secrets.items()))
    return f"note: left out of {where}, as what looks like a secret: {files}; they are read where they are (docs/security.md)"


def _bits(drawn: bytes) -> float:
    """The entropy of a text in bits a character, by how often each of its characters is in it."""
    counts = collections.Counter(drawn).values()
    return -sum(count / len(drawn) * math.log2(count / len(drawn)) for count in counts)
