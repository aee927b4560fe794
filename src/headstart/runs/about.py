"""about.json: the purpose and the author of a finished run or of repeated runs, as a person describes them. Knows no
torch."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from headstart.files import write_json
from headstart.runs.files import damaged, read_json

ABOUT = "about.json"


@dataclass(frozen=True)
class About:
    """An empty text is not shown."""

    purpose: str = ""
    author: str = ""

    def changed(self, *, purpose: str | None, author: str | None) -> "About":
        """None keeps a text. White space at the ends is removed."""
        given = {"purpose": purpose, "author": author}
        return replace(self, **{name: text.strip() for name, text in given.items() if text is not None})

    def facts(self, **dates: str | None) -> dict[str, str]:
        """Purpose, author and dates by title, without those that are unknown. dates: by the title in lower case, as
        2026-01-31T12:00:00Z; only the day is kept."""
        days = {name.capitalize(): (at or "").partition("T")[0] for name, at in dates.items()}
        found = {"Purpose": self.purpose, "Author": self.author, **days}
        return {name: text for name, text in found.items() if text}


def read_about(folder: Path) -> About:
    """Empty if the folder has no about.json. Raises InputError if the file is damaged."""
    if not (folder / ABOUT).is_file():
        return About()
    values = read_json(folder, ABOUT)
    texts = {name: values.get(name, "") for name in ("purpose", "author")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise damaged(folder / ABOUT, f"{name} is {text!r}, which is not a text")
    return About(**texts)


def write_about(folder: Path, about: About) -> None:
    write_json(folder / ABOUT, asdict(about))
