"""The two ways a run ends early on purpose, and the failures of the system. Everything else that is raised is a bug."""

import errno
import os
import sys
import traceback

from headstart.launcher import num_processes
from headstart.wording import shortened, shown


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


_CHECK = "check the disk or the network, and try again"
_REMEDIES = {
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT), _CHECK),
    **dict.fromkeys((errno.EHOSTDOWN, errno.EHOSTUNREACH), _CHECK),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "make it readable, or writable if results are written there"),
    errno.EROFS: "name another place with --out",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "repair or remove the link, or name another path",
    errno.ENOTDIR: "name a path whose parents are folders",
    errno.EISDIR: "name a file",
}
"""What to do about a path that the system refuses, by the number of the error."""
_WRONG_PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def exit_code(error: Exception) -> int:
    """Of a known failure: 2 for a path that the user can correct, else 1."""
    return 2 if isinstance(error, OSError) and error.errno in _WRONG_PATHS else 1


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
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open for the limit of this system; raise it with ulimit -n 1024, and {again}"
    if _lacks_memory(error, first):
        if isinstance(error, ImportError):
            return f"the libraries do not fit into the memory that this process may use ({first}); see ulimit -v"
        sizes = {"predict": "--batch_size", "train": "--train.batch_size and --train.eval_batch_size"}
        smaller = f"lower {sizes[command]}, or " if command in sizes else ""
        return f"memory ran out ({first[:200]}); {smaller}use a machine with more; {again}"
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
    return _unusable_path(error)


def _unusable_path(error: Exception) -> str | None:
    """Which file or folder the system refuses, why, and what to do; None for an error that is not about a path."""
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, bytes, os.PathLike)):
        return None
    if error.errno not in _REMEDIES:
        return None
    path = shortened(shown(os.fsdecode(error.filename)), 200)
    reason = "no permission" if error.errno in (errno.EACCES, errno.EPERM) else error.strerror
    return f"{path}: {reason}; {_REMEDIES[error.errno]}"


def _lacks_memory(error: Exception, message: str) -> bool:
    """Of the process (ulimit -v), of the machine or of the GPU; torch raises RuntimeError and its OutOfMemoryError."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, ImportError):  # a library that does not fit
        return "failed to map segment" in message or "cannot allocate memory" in message.lower()
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in message


def _lost_process(error: Exception) -> bool:
    """Whether a process group reports that another process is gone.

    NCCL and torch's store raise DistError. gloo raises plain RuntimeErrors, whose texts begin with its source file."""
    if num_processes() < 2 or "torch" not in sys.modules:
        return False
    dist_error = getattr(sys.modules["torch"].distributed, "DistError", ())
    return isinstance(error, dist_error) or (type(error) is RuntimeError and "gloo/" in str(error))
