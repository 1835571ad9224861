"""Files that are written whole, made durable, and seen as another machine left them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

_CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}  # what file systems answer that do not sync folders


def write_atomically(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Replace a file whole or not at all: temporary name, fsync, rename, fsync of the folder.

    Args:
        mode: who may read and write it; by default as the umask has it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    make_durable(path.parent)


def make_durable(path: Path) -> None:
    """Have what a file holds on disk, or the names in a folder where the file system can do that for folders."""
    if not is_synced(path) and not path.is_dir():
        raise OSError(errno.EINVAL, "the file system can't sync this file", str(path))


def is_synced(path: Path) -> bool:
    """Sync a file or a folder, if its file system has a way to."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    finally:
        os.close(handle)
    return True


def look_anew(folder: Path) -> None:
    """Have what other machines did in a folder seen from here on.

    A client of a network file system may go by what it saw in a folder for a minute (nfs(5), acregmax and acdirmax), until it
    changes the folder itself: the answer to that tells it whether somebody else has.
    """
    name = folder / f".look.{os.getpid()}.{threading.get_ident()}.tmp"
    with contextlib.suppress(OSError):  # no such folder, or a disk that is full or read-only: nothing is there to be overseen
        name.touch()
        name.unlink()
