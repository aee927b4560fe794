"""The two ways a run ends early on purpose, and what the system does to one; everything else that is raised is an internal error."""

import errno
import os
import sys
import traceback


class InputError(ValueError):
    """The user's input is wrong. The message says what, where, which value and what to do. Exit code 2."""

    def __init__(self, message: str) -> None:
        if message.startswith(("Caught InputError in DataLoader worker", "Caught OwnInputError in DataLoader worker")):
            # torch wraps what a worker raises in the worker's traceback; our sentence is its last line
            message = message.strip().splitlines()[-1].partition("InputError: ")[2]
        super().__init__(message)


class OwnInputError(InputError):
    """What one of several processes found alone, so it says so itself; the others are ended."""


class Stopped(Exception):
    """A signal asked the run to stop and its state is saved. Exit code 143."""


# what torch's process groups say when a peer is gone
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "Connection refused",
         "timed out", "Timeout", "ProcessGroup", "NCCL", "Socket", "gloo")  # fmt: skip


def warn(sentence: str) -> None:
    """One line that is heard in quiet runs too: something went wrong, and the run goes on."""
    print(f"headstart: warning: {sentence}", file=sys.stderr, flush=True)


def known_failure(error: Exception, *, command: str = "train") -> str | None:
    """One sentence for what the system, not a mistake of ours, does to a run."""
    option, again = "--data.num_workers or set --data.cache off", "the same command with --train.resume auto continues"
    if command == "predict":
        option, again = "--num_workers", "with --out FOLDER/ the same command continues"
    text, first = str(error), (str(error).strip().splitlines() or [""])[0]
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in text:
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; make room, and {again}"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.filename}: {error.strerror}; make it writable, or name another place with --out"
    died = "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)
    if isinstance(error, (OSError, EOFError)):  # it died while a batch was fetched from it
        died = any("resource_sharer" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    if died:
        return f"a decoding process was killed ({first}); if memory ran out, lower {option}; {again}"
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and any(sign in text for sign in _LOST):
        return (
            f"process {os.environ.get('RANK', '?')} ends because another one is gone or cannot be reached ({first[:200]}); "
            f"{again}, on any number of processes"
        )
    return None
