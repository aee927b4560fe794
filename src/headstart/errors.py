"""The two ways a run ends early on purpose, and the failures of the system. Everything else that is raised is a bug."""

import errno
import os
import sys
import traceback

from headstart.launcher import num_processes


class InputError(ValueError):
    """The user's input is wrong. The message says what, where, which value and what to do. Exit code 2."""

    def __init__(self, message: str) -> None:
        if message.startswith(("Caught InputError in DataLoader worker", "Caught OwnInputError in DataLoader worker")):
            # torch wraps an exception of a worker in the worker's traceback, whose last line is the message
            message = message.strip().splitlines()[-1].partition("InputError: ")[2]
        super().__init__(message)


class OwnInputError(InputError):
    """Found by one of several processes alone, which prints it and ends the others."""


class Stopped(Exception):
    """A signal stopped the run after its state was saved. Exit code 143. signal_name: such as SIGTERM, None in the
    processes that did not receive it."""

    def __init__(self, message: str, *, signal_name: str | None = None) -> None:
        super().__init__(message)
        self.signal_name = signal_name


def known_failure(error: Exception, *, command: str = "train") -> str | None:
    """One sentence for a failure of the system; None for a bug."""
    option, again = "--data.num_workers or set --data.cache off", "headstart resume RUN continues"
    if command == "predict":
        option, again = "--num_workers", "with --out FOLDER/ the same command continues"
    text, first = str(error), (str(error).strip().splitlines() or [""])[0]
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in text:
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; free some space, and {again}"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.filename}: {error.strerror}; make it writable, or name another place with --out"
    died = "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)
    if isinstance(error, (OSError, EOFError)):  # it died while a batch was fetched from it
        died = any("resource_sharer" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    if died:
        return f"a decoding process was killed ({first}); if memory ran out, lower {option}; {again}"
    if _lost_process(error):
        rank = os.environ.get("RANK", "?")
        return (
            f"process {rank} ends because another one is gone or cannot be reached ({first[:200]}); "
            f"{again}, on any number of processes"
        )
    return None


def _lost_process(error: Exception) -> bool:
    """Whether a process group reports that another process is gone.

    NCCL and torch's store raise DistError. gloo raises plain RuntimeErrors, whose texts begin with its source file."""
    if num_processes() < 2 or "torch" not in sys.modules:
        return False
    dist_error = getattr(sys.modules["torch"].distributed, "DistError", ())
    return isinstance(error, dist_error) or (type(error) is RuntimeError and "gloo/" in str(error))
