"""Tables on the terminal: each value is complete, at any width."""

import re
import sys
from pathlib import Path

import pytest

import headstart
from headstart.cli.print_results import _print_classes
from headstart.cli.tables import print_table

BOLD = re.compile(r"\x1b\[[0-9;]*m")
COMMON = "Amanita_muscaria_var_muscaria_collected_in_boreal_forest"
ROWS = [
    (f"{COMMON}_{part}", "1,000", f"archive/2024-05-17_campaign_station_north/{part}.jpg") for part in ("cap", "stem")
]


def columns_of(text: str, *, count: int) -> list[str]:
    """The characters of each column of a table, without spaces."""
    cells = [re.split("[│┃]", line)[1:-1] for line in text.splitlines() if line[:1] in "│┃"]
    assert all(len(row) == count for row in cells)
    return ["".join(row[at].replace(" ", "") for row in cells) for at in range(count)]


@pytest.mark.parametrize("width", [30, 50, 80, 120])
def test_a_terminal_folds_long_values_and_cuts_none(width, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(("class", "n", "image"), ROWS, right=("n",))
    text = BOLD.sub("", capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= width
    columns = zip(("class", "n", "image"), *ROWS, strict=True)
    assert columns_of(text, count=3) == ["".join(column) for column in columns]


def test_a_pipe_gets_each_row_in_one_line(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("class", "n", "image"), ROWS)
    lines = capsys.readouterr().out.splitlines()
    for row in ROWS:
        assert sum(all(value in line for value in row) for line in lines) == 1


def test_numbers_stay_in_one_line_while_long_names_fold(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    values = {"precision": None, "precision_ci95": None, "recall": 0.5, "recall_ci95": (0.125, 0.875), "n": 10}
    _print_classes({f"{COMMON}_{part}": values for part in ("cap", "stem")})
    text = BOLD.sub("", capsys.readouterr().out)
    assert text.count("0.125 to 0.875") == 2
    assert columns_of(text, count=5)[0] == f"class{COMMON}_cap{COMMON}_stem"


def test_every_table_of_the_commands_is_printed_by_one_function() -> None:
    """Tables made elsewhere would cut the ends of long names (the default of rich)."""
    source = Path(headstart.__file__).parent
    found = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if "rich.table" in path.read_text()}
    assert found == {"cli/tables.py"}
