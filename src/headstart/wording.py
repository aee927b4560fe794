"""Paths, lists, suggestions, errors and results in messages."""

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def shown(path: str) -> str:
    """The path; escaped if it has control characters or undecodable bytes."""
    return path if path.isprintable() else ascii(path)[1:-1]


def listed(names: Sequence[str], *, limit: int = 3) -> str:
    """The first names and the number of the others: 'a, b, c and 4 more'."""
    text = ", ".join(shown(name) for name in names[:limit])
    return text + (f" and {len(names) - limit} more" if len(names) > limit else "")


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters: of a longer text the beginning and the end, as names often begin alike."""
    head = limit // 2
    return text if len(text) <= limit else f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that suggests the nearest known name; empty if none is near."""
    names = sorted(known)
    leaf = name.rsplit(".", 1)[-1]
    # a correct key in a wrong section comes first: optim.epochs, strateg.name
    same_leaf = [other for other in names if other.rsplit(".", 1)[-1] == leaf]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.9)  # train.fold: train.folds, not data.fold
    close = close or difflib.get_close_matches(name, same_leaf or names, n=1, cutoff=0.0 if same_leaf else 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def headline(metrics: Mapping[str, Any]) -> str:
    """'accuracy 88.2% [82.1%, 92.4%], 135 of 153'."""
    low, high = metrics["accuracy_ci95"]
    return f"accuracy {metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}], {metrics['correct']} of {metrics['n']}"


def one_line(error: Exception) -> str:
    """The message of an exception on one line; its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def command_line(*words: object) -> str:
    """'headstart resume runs/first': a command that can be pasted into a shell."""
    return shlex.join(["headstart", *map(str, words)])


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return f"pip install 'headstart[{extra}]'"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """'1 file', '2,000 files', '2 processes', '2 epochs'. nouns: the plural, if it is irregular."""
    hisses = noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch")
    nouns = nouns or noun + ("es" if hisses else "s")
    return f"{number:,} {noun if number == 1 else nouns}"
