"""The limits of the options of `headstart export`, checked before anything slow is imported."""

from headstart.errors import InputError


def check_options(*, images: int, allow_loss: float | None) -> None:
    """Raise InputError for a value out of range."""
    if images < 1:
        raise InputError(f"--images is {images}; it must be at least 1")
    if allow_loss is not None and not 0 <= allow_loss <= 1:
        raise InputError(f"--allow_loss is {allow_loss}; it must lie between 0 and 1")
