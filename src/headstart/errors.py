"""The two ways a run ends early on purpose; everything else that is raised is a bug of ours."""


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
