"""Text for spreadsheet programs: no cell is a formula, and nothing is lost."""

import codecs
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.config import DataConfig
from headstart.data.source import Entry
from headstart.data.sources.table import ListedImages
from headstart.data.splits import groups_of
from headstart.data_doctor.findings import Finding
from headstart.data_doctor.fixes import apply_fixes, write_csv, write_fixes
from headstart.predict.output_table import TableFile
from headstart.spreadsheet import defused, restored

ODD = ["=a.jpg", "+a.jpg", "-a.jpg", "@a.jpg", "'=a.jpg", "é.jpg", "'a.jpg"]


@given(st.text(alphabet="=+-@'\t\rab", max_size=5))
def test_text_is_restored_and_never_a_formula(text: str) -> None:
    assert restored(defused(text)) == text
    assert defused(text)[:1] not in tuple("=+-@\t\r")


@pytest.mark.parametrize("excel", [True, False])
def test_a_table_of_predictions_is_read_back_as_a_source(excel: bool, tmp_path: Path) -> None:
    schema = pa.schema([("path", pa.string()), ("predicted", pa.string()), ("probability", pa.float64())])
    file = TableFile(tmp_path / "found.csv", schema, suffix=".csv", excel=excel)
    names = [name for name in ODD if excel or name != "'=a.jpg"]
    file.write(pa.record_batch([names, [f"={k % 2}" for k in range(len(names))], [-0.5] * len(names)], schema=schema))
    file.close()
    content = (tmp_path / "found.csv").read_bytes()
    assert content.startswith(codecs.BOM_UTF8) == excel
    assert (b"'=0" in content) == excel
    assert b",-0.5" in content  # a number, not text
    scan = ListedImages(str(tmp_path / "found.csv"), DataConfig(label_column="predicted")).scan()
    assert [entry.path for entry in scan.entries] == names
    assert {entry.label for entry in scan.entries} == {"=0", "=1"}


@pytest.mark.parametrize("excel", [True, False])
def test_fixes_and_groups_are_read_in_both_forms(excel: bool, tmp_path: Path) -> None:
    names = [name for name in ODD if name != "'=a.jpg"]
    for name in names:
        (tmp_path / "data/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/a" / name).write_bytes(b"x")
        (tmp_path / "data" / name).write_bytes(b"x")
    write_fixes(tmp_path / "fixes.csv", [Finding.of("unreadable", name, "=1") for name in names], excel=excel)
    assert (tmp_path / "fixes.csv").read_bytes().startswith(codecs.BOM_UTF8) == excel
    count = apply_fixes(tmp_path / "fixes.csv", data=tmp_path / "data", out=tmp_path / "new")
    assert count["dropped"] == len(names)
    assert sorted(path.name for path in (tmp_path / "new/a").iterdir()) == sorted(names)
    write_csv(tmp_path / "groups.csv", ("path", "group"), [(name, 7) for name in names[:3]], excel=excel)
    found = groups_of([Entry(name, "a") for name in names], str(tmp_path / "groups.csv"))
    assert found == ["group 7"] * 3 + [""] * 3
