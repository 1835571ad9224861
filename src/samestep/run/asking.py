"""Stores that fsspec reaches: how one is opened, how its bytes are asked for, and what its errors mean."""

from __future__ import annotations

import re
from typing import Any

from samestep.errors import UsageError

ANSWER_S = 60.0  # for one request
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_CLIENTS = ("aiohttp", "azure", "botocore", "gcsfs", "google", "httpcore", "httpx", "httpx2", "huggingface_hub", "requests",
            "s3fs", "urllib3")  # fmt: skip


def opened(key: str, address: str, options: dict[str, Any]) -> tuple[Any, str]:
    """fsspec's file system and the path in it; fsspec keeps one for each process and thread.

    Raises UsageError, a line that begins with `key`, for an address that nothing here can open.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        raise UsageError(f"{key}: {address} cannot be opened here: {error}{_package(address, str(error))}") from None
    except ValueError as error:
        raise UsageError(f"{key}: {address}: {error}; write a path, https://, s3://, gs:// or hf://") from None
    return system, path


def _package(address: str, said: str) -> str:
    """What to install, as far as fsspec's own words have it."""
    if address.startswith("http"):
        return "; write pip install 'samestep[http]'"
    named = re.search(r'[Ii]nstall (\w+) to|requires "(\w+)"', said)
    return f"; write pip install {named[1] or named[2]}" if named else ""


def asked(system: Any, path: str, start: int, stop: int) -> bytes:
    """Some bytes of a file, in one request; a store may give fewer."""
    import fsspec.asyn

    if system.async_impl:
        found = fsspec.asyn.sync(system.loop, system._cat_file, path, start=start, end=stop, timeout=ANSWER_S)
    else:
        found = system.cat_file(path, start=start, end=stop)
    return bytes(found)


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of whatever client, if it was an answer."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):  # botocore's
            answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        own = getattr(one, "code" if type(one).__module__.startswith(("gcsfs", "google")) else "status", None)
        for found in (own, getattr(answer, "status_code", answer)):
            if isinstance(found, int) and 400 <= found < 600:
                return found
    return None


def is_transient(error: BaseException) -> bool:
    """Whether waiting may help."""
    status = status_of(error)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    chain = _chain(error)
    if isinstance(error, FINAL_ERRORS):
        chain = chain[1:]  # fsspec says "not found" of whatever has gone wrong in looking
    return any(
        (isinstance(one, (OSError, EOFError)) and not isinstance(one, FINAL_ERRORS))
        or type(one).__module__.partition(".")[0] in _CLIENTS
        for one in chain
    )


def asked_wait_s(error: BaseException) -> float:
    """What a store asks for in Retry-After, in seconds."""
    for one in _chain(error):
        headers = getattr(one, "headers", None) or getattr(getattr(one, "response", None), "headers", None) or {}
        if str(headers.get("Retry-After", "")).isdigit():
            return float(headers["Retry-After"])
    return 0.0


def words_of(error: BaseException) -> str:
    """What a store said, in words that follow its name."""
    status = status_of(error)
    return f"answers {status}" if status else f"gives {type(error).__name__}: {str(error)[:160]}".rstrip(": ")


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and those that led to it: fsspec wraps what a client has raised."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
