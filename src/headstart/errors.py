"""The two ways a run ends early on purpose; everything else that is raised is a bug of ours."""


class InputError(ValueError):
    """The user's input is wrong. The message says what, where, which value and what to do. Exit code 2."""


class Stopped(Exception):
    """A signal asked the run to stop and its state is saved. Exit code 143."""
