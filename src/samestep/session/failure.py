"""What a rank leaves behind when it fails: its last words, where the launcher and local.sh look for them."""

from __future__ import annotations

import json
import time
import traceback

from samestep.control import is_victim
from samestep.run_folder import RunFolder, write_atomically
from samestep.runtime import Runtime, error_file


def record_failure(
    folder: RunFolder, runtime: Runtime, paragraph: str, error: BaseException | None = None, victim: bool | None = None
) -> None:
    """Write one paragraph for people and the whole traceback for the rank's log.

    Args:
        victim: whether this rank failed only because another had; by default that is read from the error.
    """
    words = {"rank": runtime.rank, "host": runtime.host, "time": time.time(), "paragraph": paragraph}
    words["victim"] = victim if victim is not None else error is not None and is_victim(error)
    if folder.logs.is_dir():
        write_atomically(folder.failure(runtime.rank), json.dumps(words))
        with folder.log(runtime.rank).open("a") as log:
            log.write("".join(traceback.format_exception(error)) if error else paragraph + "\n")
    place = error_file()
    if place is not None:
        message = {"message": paragraph, "extraInfo": {"py_callstack": paragraph, "timestamp": str(int(time.time()))}}
        place.write_text(json.dumps({"message": message}))
