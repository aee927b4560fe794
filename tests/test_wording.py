"""Words that depend on numbers."""

import pytest

from headstart.wording import plural


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (1, "epoch", "1 epoch"),
        (3, "epoch", "3 epochs"),
        (2, "training epoch", "2 training epochs"),
        (2, "batch", "2 batches"),
        (2, "class", "2 classes"),
        (2000, "file", "2,000 files"),
        (0, "process", "0 processes"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, words: str) -> None:
    assert plural(number, noun) == words
