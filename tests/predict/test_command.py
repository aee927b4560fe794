"""headstart predict: exactly one row for each image, also with unreadable files, killed processes and signals."""

import codecs
import contextlib
import csv
import datetime
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.images import draw
from support.models import CLASSES, write_model

import headstart
from headstart import InputError
from headstart.cli.main import main
from headstart.cli.print_predictions import print_predictions
from headstart.data.decode import EXTENSIONS, FORMATS
from headstart.model.model_file import load_tensors, save_model_tensors
from headstart.predict.image_paths import Listed, images
from headstart.predict.kept_columns import KeptColumns
from headstart.predict.parts_folder import begin_or_continue, state_of
from headstart.predict.predictor import Predictor
from headstart.predict.stream import stream


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), calibrated=True)


def exit_code(*argv: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return end.value.code


def paths(*patterns: object, **options: object) -> list[str]:
    return [one.path for one in images([str(pattern) for pattern in patterns], **options)]


def files(*patterns: object, **options: object) -> list[str]:
    """What is opened for each."""
    return [one.file or one.path for one in images([str(pattern) for pattern in patterns], **options)]


# ------------------------------------------------------------------------------------------------- which images


def test_a_folder_is_searched_below_in_the_order_of_whole_names(tmp_path) -> None:
    for name in (
        "b/x.jpg",
        "b-1/x.png",
        "b.jpg",
        "a.JPG",
        "b/c/d.webp",
        ".hidden/x.jpg",
        "b/.x.jpg",
        "b/notes.txt",
        "b0.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(path, tmp_path) for path in paths(tmp_path)]
    assert found == ["a.JPG", "b-1/x.png", "b.jpg", "b/c/d.webp", "b/x.jpg", "b0.jpg"]
    assert paths(tmp_path) == sorted(paths(tmp_path))
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert len(paths(tmp_path)) == 6


def test_lists_tables_and_globs_name_images(tmp_path) -> None:
    for name in ("a.jpg", "b c.jpg", "ä.png"):
        (tmp_path / name).touch()
    wanted = [str(tmp_path / name) for name in ("a.jpg", "b c.jpg", "ä.png")]
    (tmp_path / "list.csv").write_text("id,path\n1,a.jpg\n2,b c.jpg\n3,ä.png\n")
    (tmp_path / "list.tsv").write_text("file_name\tid\na.jpg\t1\nb c.jpg\t2\nä.png\t3\n")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"image": path}) + "\n" for path in wanted))
    (tmp_path / "list.txt").write_bytes("a.jpg\r\nb c.jpg\r\n\r\nä.png".encode())
    (tmp_path / "zero.lst").write_bytes(b"\0".join(os.fsencode(path) for path in wanted) + b"\0")
    for name in ("list.csv", "list.tsv", "list.jsonl", "list.txt", "zero.lst", "*.[jp][pn]g"):
        assert files(tmp_path / name) == wanted, name
    assert files(tmp_path / "list.csv", column="path") == wanted
    assert files(tmp_path / "a.jpg", tmp_path / "list.txt") == [wanted[0], *wanted]


def test_the_path_is_that_of_the_list_so_that_rows_join(tmp_path, monkeypatch) -> None:
    (tmp_path / "sub").mkdir()
    for given in ("a.jpg", "../d/a.jpg", "./a.jpg", "d\\a.jpg", str(tmp_path / "a.jpg")):
        quoted = json.dumps({"path": given})
        for name, text in (
            ("list.csv", f"id,path\n1,{given}\n"),
            ("list.tsv", f"id\tpath\n1\t{given}\n"),
            ("list.jsonl", f"{quoted}\n"),
            ("list.txt", f"{given}\n"),
        ):
            (tmp_path / "sub" / name).write_text(text)
            assert paths(tmp_path / "sub" / name) == [given], name
        pq.write_table(pa.table({"path": [given]}), tmp_path / "sub" / "list.parquet")
        assert paths(tmp_path / "sub" / "list.parquet") == [given]
    monkeypatch.chdir(tmp_path)
    assert files("sub/list.csv") == [str(tmp_path / "a.jpg")]
    Path("sub/list.csv").write_text("path\n../a.jpg\n")
    assert (paths("sub/list.csv"), files("sub/list.csv")) == (["../a.jpg"], ["sub/../a.jpg"])


def test_paths_of_windows_name_the_same_files_in_every_list(tmp_path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpg").touch()
    (tmp_path / "list.csv").write_text("path\nd\\a.jpg\nC:\\d\\a.jpg\n")
    (tmp_path / "list.txt").write_text("d\\a.jpg\r\nC:\\d\\a.jpg\r\n")
    (tmp_path / "list.jsonl").write_text('{"path": "d\\\\a.jpg"}\n{"path": "C:\\\\d\\\\a.jpg"}\n')
    pq.write_table(pa.table({"path": ["d\\a.jpg", "C:\\d\\a.jpg"]}), tmp_path / "list.parquet")
    for name in ("list.csv", "list.txt", "list.jsonl", "list.parquet"):
        here, away = images([str(tmp_path / name)])
        assert (here.path, here.file, here.error) == ("d\\a.jpg", str(tmp_path / "d/a.jpg"), None), name
        assert away.path == "C:\\d\\a.jpg"
        assert "Windows drive" in away.error
    (tmp_path / "d\\a.jpg").touch()
    assert files(tmp_path / "list.csv")[0] == str(tmp_path / "d\\a.jpg")


def test_a_list_is_read_like_a_table_of_training(tmp_path) -> None:
    for text in ("path;id\na.jpg;1\n", "\n id , path\n1, a.jpg\n", "sep=;\r\nid;path\r\n1;a.jpg\r\n"):
        (tmp_path / "list.csv").write_text(text)
        assert paths(tmp_path / "list.csv") == ["a.jpg"], text
    for text, pattern in (
        ("path,id\na, b.jpg,1\n", r"row 1 \(line 2\) has 3 values"),
        ('path,id\n"a.jpg,1\n', "row 1.*quote"),
        ("id,path\n1\n", "row 1.*'path'"),
        ("path,path\na.jpg,b.jpg\n", "'path'"),
    ):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(InputError, match=rf"list\.csv.*{pattern}"):
            paths(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("path,id\na.jpg,1\nb,c.jpg,2\n")
    with pytest.raises(InputError, match="row 2"):
        next(images([str(tmp_path / "list.csv")]))  # before the first image


def test_every_image_type_is_found_and_other_files_are_counted(tmp_path) -> None:
    Image.init()
    assert {Image.registered_extensions().get(ending, "PPM") for ending in EXTENSIONS} <= {*FORMATS, "AVIF", "HEIF"}
    for ending in sorted(EXTENSIONS):
        (tmp_path / f"a{ending}").touch()
    for name in ("b.txt", "c.txt", "README", "film.gif"):
        (tmp_path / name).touch()
    left_out: Counter[str] = Counter()
    assert len(paths(tmp_path, left_out=left_out)) == len(EXTENSIONS)
    assert left_out == {".txt": 2, "no extension": 1, ".gif": 1}


def test_a_folder_without_image_types_is_refused_with_what_it_holds(tmp_path) -> None:
    (tmp_path / "film.gif").touch()
    with pytest.raises(InputError, match=re.escape(str(tmp_path)) + ".*1 \\.gif"):
        paths(tmp_path)


def test_files_that_are_skipped_in_a_folder_are_reported(model, tmp_path, capsys) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 50)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "notes.txt").touch()
    for options in ((), ("--out", tmp_path / "a.csv"), ("--out", f"{tmp_path}/parts/")):
        assert exit_code("predict", model, tmp_path / "in", *options) == 0
        assert "1 .txt" in capsys.readouterr().out


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n", encoding="utf-8-sig")
    assert files(tmp_path / "list.txt") == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    (tmp_path / "list.txt").write_text("ä.jpg\r\nb.jpg\r\n" * 9000, encoding="utf-16")  # as PowerShell writes it
    assert paths(tmp_path / "list.txt") == ["ä.jpg", "b.jpg"] * 9000
    (tmp_path / "short.txt").write_text("a")
    assert files(tmp_path / "short.txt") == [str(tmp_path / "a")]


def test_a_table_without_a_header_is_refused_with_the_option_to_use(tmp_path) -> None:
    (tmp_path / "list.csv").write_text("a.jpg,1\nb.jpg,2\n")
    with pytest.raises(InputError, match=r"--image_column .*--data\.image_column.*first line"):
        paths(tmp_path / "list.csv")


def test_a_row_without_a_path_or_with_a_name_that_is_not_text_has_an_error_of_its_own(tmp_path) -> None:
    (tmp_path / "list.csv").write_text("path,x\na.jpg,1\n,2\n")
    empty = list(images([str(tmp_path / "list.csv")]))[1]
    assert empty.path == ""
    assert f"row 2 of {tmp_path}/list.csv" in empty.error
    (tmp_path / "list.txt").write_bytes(b"good.jpg\nb\xffd.jpg\n")
    good, bad = images([str(tmp_path / "list.txt")])
    assert (good.path, good.error) == ("good.jpg", None)
    assert bad.path == "b\\xffd.jpg"
    assert "UTF-8" in bad.error


def test_standard_input_names_images(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x/a.jpg\nb.jpg\n")))
    assert paths("-") == ["x/a.jpg", "b.jpg"]
    with pytest.raises(InputError, match=r"^- .*twice"):
        paths("-", "-")


def test_an_argument_without_images_is_refused_before_the_first_image(tmp_path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.txt").touch()
    (tmp_path / "labels.csv").write_text("id,label\n1,2\n")
    for name, fragment in (("empty", ""), ("x*.jpg", ""), ("nothing.txt", ""), ("labels.csv", ".*--image_column")):
        with pytest.raises(InputError, match=re.escape(str(tmp_path / name)) + fragment):
            next(images([str(tmp_path / "a.jpg"), str(tmp_path / name)]))


def test_the_names_of_a_long_list_are_not_held_in_memory(tmp_path) -> None:
    import tracemalloc

    (tmp_path / "list.txt").write_text("".join(f"folder/of/some/length/image_{n:07d}.jpg\n" for n in range(20_000)))
    tracemalloc.start()
    assert sum(1 for _ in images([str(tmp_path / "list.txt")])) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000  # bytes; a list of them takes 5,000,000


# ------------------------------------------------------------------------------------------------- kept columns


def kept(pattern: object, asked: str) -> tuple[list[tuple[str, str]], list[tuple]]:
    """Names and types, and the values of each row."""
    found = KeptColumns.of([str(pattern)], asked, image_column=None)
    return [(field.name, str(field.type)) for field in found.fields], [
        one.kept for one in images([str(pattern)], kept=found)
    ]


def test_columns_of_the_list_keep_their_types(tmp_path) -> None:
    (tmp_path / "list.csv").write_text("id,path,site\n007,a.jpg,north\n8,b.jpg,\n")
    assert kept(tmp_path / "list.csv", "site, id") == (
        [("site", "string"), ("id", "string")],
        [("north", "007"), ("", "8")],
    )
    assert kept(tmp_path / "list.csv", "all")[0] == [("id", "string"), ("site", "string")]
    rows = [
        {"path": "a.jpg", "id": 1, "share": 1, "mixed": 1, "ok": True, "tags": ["x", "ü"], "long": 2**70},
        {"path": "b.jpg", "share": 0.5, "mixed": "x", "ok": None},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kept(tmp_path / "list.jsonl", "id,share,mixed,ok,tags,long") == (
        [
            ("id", "int64"),
            ("share", "double"),
            ("mixed", "string"),
            ("ok", "bool"),
            ("tags", "string"),
            ("long", "string"),
        ],
        [(1, 1.0, "1", True, '["x", "ü"]', str(2**70)), (None, 0.5, "x", None, None, None)],
    )
    day = datetime.date(2026, 2, 3)
    table = pa.table(
        {
            "path": ["a.jpg"],
            "id": pa.array([1], pa.int32()),
            "day": [day],
            "kind": pa.array(["k"]).dictionary_encode(),
            "gap": [float("nan")],
            "at": pa.array([datetime.datetime(2026, 2, 3)], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    types, ((*values, at),) = kept(tmp_path / "list.parquet", "all")
    assert [kind for _, kind in types] == ["int32", "date32[day]", "string", "double", "timestamp[ns]"]
    assert (values, str(at)) == ([1, day, "k", None], "2026-02-03 00:00:00")


@pytest.mark.parametrize(
    ("header", "asked", "fragments"),
    [
        ("path,id", "site", ("list.csv", "'site'", "path, id")),
        ("path,error", "all", ("list.csv", "'error'", "rename")),
        ("path,probability_ant", "probability_ant", ("'probability_ant'", "rename")),
        ("path,id", "path", ("'path'", "rename")),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(header, asked, fragments, model, tmp_path, capsys) -> None:
    (tmp_path / "list.csv").write_text(f"{header}\na.jpg,1\n")
    out = tmp_path / "a.parquet"
    assert exit_code("predict", model, tmp_path / "list.csv", "--out", out, "--keep_columns", asked) == 2
    error = capsys.readouterr().err
    assert all(fragment in error for fragment in fragments), error
    assert not out.exists()


def test_columns_are_kept_from_tables_and_in_files(model, tmp_path, capsys) -> None:
    (tmp_path / "list.csv").write_text("path,id\na.jpg,1\n")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    for arguments, fragment in (
        ((tmp_path / "list.csv",), "--out"),
        ((tmp_path / "list.csv", tmp_path / "list.txt", "--out", tmp_path / "a.csv"), "list.txt"),
        ((tmp_path, "--out", tmp_path / "a.csv"), str(tmp_path)),
    ):
        assert exit_code("predict", model, *arguments, "--keep_columns", "id") == 2
        assert fragment in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_join_with_the_table_that_lists_the_images(model, tiny_data, tmp_path, capsys) -> None:
    found = sorted((tiny_data / "val").rglob("*.*"))[:5]
    rows = [{"id": 100 + k, "path": os.path.relpath(path, tmp_path), "site": "n=ü"} for k, path in enumerate(found)]
    rows.insert(2, {"id": 200, "path": "missing.jpg", "site": None})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("predict", model, tmp_path / "list.jsonl", "--keep_columns", "id,site", "--batch_size", 2, "--top", 2)
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert exit_code(*arguments, "--out", tmp_path / name) == 0
        answers = _rows(tmp_path / name)
        assert [row["path"] for row in answers] == [row["path"] for row in rows]
        assert [int(row["id"]) for row in answers] == [row["id"] for row in rows]
        assert [row["site"] for row in answers] == [row["site"] for row in rows]
        assert [row["predicted"] is None for row in answers] == [row["id"] == 200 for row in rows]
    out = tmp_path / "parts"
    for _ in range(2):  # the second continues
        assert exit_code(*arguments, "--out", f"{out}/", "--part_rows", 2) == 0
        assert pq.read_table(out).select(["id", "path", "site"]).to_pylist() == rows
        (out / "part-000000000002-000000000004.parquet").unlink(missing_ok=True)
    capsys.readouterr()
    for text, option, pattern in (
        (json.dumps(rows[0]) + "\n", "id", "keep_columns"),
        (json.dumps(rows[0] | {"id": 7}) + "\n", "id,site", r"image 1 .*\b100\b.*\b7\b"),
    ):
        (tmp_path / "list.jsonl").write_text(text)
        again = ("predict", model, tmp_path / "list.jsonl", "--keep_columns", option, "--batch_size", 2, "--top", 2)
        assert exit_code(*again, "--out", f"{out}/", "--part_rows", 2) == 2
        assert re.search(pattern, capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture
def mixed(tiny_data, tmp_path) -> list[Path]:
    """Five images, and between them three files that cannot be read."""
    good = sorted((tiny_data / "val").rglob("*.*"))[:5]
    (tmp_path / "broken.jpg").write_bytes(good[0].read_bytes()[:200])
    (tmp_path / "long.png").write_bytes(_png(2, 60_000))
    return [*good[:2], tmp_path / "broken.jpg", *good[2:4], tmp_path / "missing.jpg", tmp_path / "long.png", good[4]]


@pytest.fixture
def mixed_list(mixed, tmp_path) -> Path:
    """The same in a list: a missing file on the command line itself is refused."""
    (tmp_path / "mixed.txt").write_text("".join(f"{path}\n" for path in mixed))
    return tmp_path / "mixed.txt"


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_every_file_type_holds_the_predictions_of_the_python_api(
    model, mixed, mixed_list, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 30_000_000)  # so that a small file is too long to be resized
    expected = headstart.load(model).predict(mixed, top=2, embeddings=True, errors="row")
    for suffix in (".csv", ".jsonl", ".parquet"):
        out = tmp_path / f"table{suffix}"
        embeddings = [] if suffix == ".csv" else ["--embeddings"]
        assert exit_code("predict", model, mixed_list, "--out", out, "--top", 2, *embeddings, "--batch_size", 3) == 0
        assert "3 of 8" in capsys.readouterr().out
        rows = _rows(out)
        assert len(rows) == len(expected) == 8
        for row, prediction in zip(rows, expected, strict=True):
            assert (row["path"], row["predicted"], row["error"]) == (
                prediction.path,
                prediction.label,
                prediction.error,
            )
            if prediction.label is None:
                assert {value for name, value in row.items() if name not in ("path", "error")} == {None}
                continue
            assert row["probability"] == pytest.approx(prediction.probability, abs=1e-5)
            assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
            assert [name for name, _ in row["top"]] == [name for name, _ in prediction.top]
            assert tuple(row["prediction_set"]) == prediction.prediction_set
            assert row["none_of_these"] == prediction.none_of_these
            assert row["distance"] == pytest.approx(prediction.distance, abs=1e-5)
            if embeddings:
                assert np.abs(np.array(row["embedding"], np.float32) - prediction.embedding).max() < 1e-4
        assert "thin" in rows[6]["error"]
    assert not list(tmp_path.glob("*incomplete*")) + list(tmp_path.glob(".*"))


def _rows(path: Path) -> list[dict]:
    """Of all three types in one form."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        rows = [
            {name: value or None for name, value in row.items()}
            for row in csv.DictReader(path.read_text().splitlines())
        ]
        for row in rows:
            for name in ("prediction_set", "top", "none_of_these", "distance", "probability"):
                row[name] = json.loads(row[name]) if row[name] else None
    else:
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["top"] = row["top"] and [[entry["class"], entry["probability"]] for entry in row["top"]]
    for row in rows:
        named = {name: row.pop(f"probability_{name}") for name in CLASSES}
        row["probabilities"] = {n: float(v) for n, v in named.items()} if row["predicted"] else None
    return rows


def test_calibration_confidence_and_columns_can_be_chosen(model, tiny_data, tmp_path) -> None:
    path = sorted((tiny_data / "val").rglob("*.*"))[3]
    predictor = headstart.load(model)
    logits = predictor.compute(predictor.transform(path)[None]).logits[0].astype(np.float64)

    def softmax(values: np.ndarray) -> np.ndarray:
        return np.exp(values) / np.exp(values).sum()

    (calibrated,) = predictor.predict(path)
    (plain,) = predictor.predict(path, calibrated=False)
    assert list(calibrated.probabilities.values()) == pytest.approx(softmax(logits / 1.7))
    assert list(plain.probabilities.values()) == pytest.approx(softmax(logits))
    sets = [predictor.predict(path, confidence=share)[0].prediction_set for share in (0.8, 0.9, 0.95)]
    assert all(set(small) <= set(large) for small, large in pairwise(sets))
    for changes, reason in (
        ({"confidence": 0.7}, r"confidence 0\.7"),
        ({"wrongly_flagged": 0.3}, r"0\.3"),
        ({"top": 0}, r"top .*\b0\b"),
    ):
        with pytest.raises(InputError, match=reason):
            predictor.predict(path, **changes)
    for option, name in (("--uncalibrated", plain), ("--no_probabilities", calibrated)):
        assert exit_code("predict", model, path, "--out", tmp_path / "a.parquet", option, "--overwrite") == 0
        (row,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
        assert row["probability"] == pytest.approx(name.probability, abs=1e-6)
        assert ("probability_red_checks" in row) == (option == "--uncalibrated")


@pytest.mark.parametrize(("given", "out"), [("list.csv", "list.csv"), ("list.incomplete.csv", "list.csv")])
def test_a_list_of_images_is_never_overwritten_by_its_predictions(
    given, out, model, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "image\na.jpg\n"
    Path(given).write_text(text)
    assert exit_code("predict", model, tmp_path / given, "--out", out) == 2
    assert re.search(rf"--out {out} .*{tmp_path / given}", capsys.readouterr().err)
    assert Path(given).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [given]


def test_an_image_that_pillow_warns_of_is_a_row_and_the_warning_is_not_printed(model, tmp_path) -> None:
    Image.new("1", (10_000, 9_500)).save(tmp_path / "large.png")
    arguments = ("predict", model, tmp_path / "large.png", "--out", tmp_path / "a.jsonl", "--num_workers", "0")
    done = subprocess.run([sys.executable, "-m", "headstart", *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "89,478,485" in json.loads((tmp_path / "a.jsonl").read_text())["error"]


def test_an_existing_file_is_kept_until_the_new_one_is_complete(model, tiny_data, tmp_path, capsys) -> None:
    out = tmp_path / "a.csv"
    out.write_text("old")
    (tmp_path / "bad.csv").write_text("path\n" + f"{tiny_data}/val/x.jpg\n" * 40 + "\xff", encoding="latin-1")
    assert exit_code("predict", model, tmp_path / "bad.csv", "--out", out, "--overwrite") == 2
    assert str(tmp_path / "bad.csv") in capsys.readouterr().err
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "bad.csv"]


def test_an_existing_file_is_replaced_only_on_request(model, tiny_data, tmp_path, capsys) -> None:
    image, out = next((tiny_data / "val").rglob("*.*")), tmp_path / "a.csv"
    out.write_text("old")
    assert exit_code("predict", model, image, "--out", out) == 2
    complaint = capsys.readouterr().err
    assert str(out) in complaint
    assert "--overwrite" in complaint
    assert out.read_text() == "old"
    assert exit_code("predict", model, image, "--out", out, "--overwrite") == 0
    assert str(image) in out.read_text()


def test_a_folder_is_started_again_only_on_request_and_other_files_in_it_stay(model, mixed, tmp_path, capsys) -> None:
    folder = tmp_path / "parts"
    assert exit_code("predict", model, *mixed[:2], "--out", f"{folder}/") == 0
    assert exit_code("predict", model, mixed[0], "--out", f"{folder}/") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(table_of(folder)) == 2
    (folder / "notes.txt").write_text("mine")
    assert exit_code("predict", model, mixed[0], "--out", f"{folder}/", "--overwrite") == 2
    assert "notes.txt" in capsys.readouterr().err  # the folder holds more than predictions
    (folder / "notes.txt").unlink()
    assert len(table_of(folder)) == 2
    assert exit_code("predict", model, mixed[0], "--out", f"{folder}/", "--overwrite") == 0
    assert table_of(folder) == [str(mixed[0])]


@pytest.mark.slow
def test_a_csv_for_excel_has_a_mark_and_no_formulas_and_is_read_back(model, tmp_path, capsys) -> None:
    names = ["=1+1.jpg", "-é.jpg", "@a.jpg", "plain.jpg", "'=quoted.jpg"]
    for number, name in enumerate(names):
        draw(number % 3, number).save(tmp_path / name)
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    out = tmp_path / "found.csv"
    assert exit_code("predict", model, listing, "--out", out, "--excel") == 0
    assert out.read_bytes().startswith(codecs.BOM_UTF8)
    with out.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 5
    assert all(row["error"] == "" for row in rows)
    assert [float(row["probability"]) > 0 for row in rows] == [True] * 5
    again = tmp_path / "again.csv"
    assert exit_code("predict", model, out, "--out", again) == 0
    assert "could not be read" not in capsys.readouterr().out


def test_excel_is_for_csv_files_only(model, mixed, tmp_path, capsys) -> None:
    for out in ([], ["--out", tmp_path / "a.parquet"], ["--out", f"{tmp_path}/parts/"]):
        assert exit_code("predict", model, mixed[0], "--excel", *out) == 2
        error = capsys.readouterr().err
        assert "--excel" in error
        assert "add --out FILE.csv" in error or out


# ------------------------------------------------------------------------------------------------- the terminal


def row(path: str, **values: object) -> dict[str, object]:
    return {"path": path, "predicted": "ants", "probability": 0.9, "error": None, **values}


def printed(rows: list[dict[str, object]], *, limit: float | None = 1.0) -> None:
    calibration = SimpleNamespace(conformal=SimpleNamespace(limits={0.9: limit}))
    predictor = SimpleNamespace(info=SimpleNamespace(calibration=calibration))
    columns = SimpleNamespace(predictor=predictor, options=SimpleNamespace(confidence=0.9))
    print_predictions(rows, columns, total=len(rows))  # type: ignore[arg-type]


def line_with(text: str, fragment: str) -> str:
    (line,) = (line for line in text.splitlines() if fragment in line)
    return line


def test_the_table_marks_none_of_these_and_sets_of_several_classes(capsys) -> None:
    many = [f"class_{number}" for number in range(9)]
    rows = [
        row("a.jpg", none_of_these=True, prediction_set=["ants", "bees"]),
        row("b.jpg", none_of_these=False, prediction_set=["ants", "bees"]),
        row("c.jpg", none_of_these=None, prediction_set=many),
        row("d.jpg", none_of_these=False, prediction_set=["ants"]),
    ]
    printed(rows)
    text = capsys.readouterr().out
    assert "none of these" in line_with(text, "a.jpg")
    assert "ants or bees" in line_with(text, "b.jpg")
    assert "class_3 or 5 more" in line_with(text, "c.jpg")
    assert line_with(text, "d.jpg").count("ants") == 1
    printed(rows[1:], limit=None)  # every set has all classes
    assert "ants or bees" not in capsys.readouterr().out


def test_the_table_has_the_most_probable_classes(model, tiny_data, capsys) -> None:
    image = next((tiny_data / "val").rglob("*.*"))
    (prediction,) = headstart.load(model).predict(image, top=2)
    assert exit_code("predict", model, image, "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if str(image) in line)
    for line, (name, probability) in zip(lines[first:], prediction.top, strict=False):
        assert name in line
        assert f"{probability:.3f}" in line


def test_a_long_path_is_whole_in_a_pipe_and_continues_on_the_next_line_of_a_terminal(capsys, monkeypatch) -> None:
    path = "/".join(["folder of some length"] * 12) + "/image.jpg"
    printed([row(path, prediction_set=["ants", "bees"])])
    assert path in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    printed([row(path, prediction_set=["ants", "bees"])])
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 60
    whole = "".join(line.split("│")[1].strip() for line in lines if "│" in line)
    assert whole.replace(" ", "") == path.replace(" ", "")


def test_none_of_these_is_empty_if_the_model_file_has_no_limit(model, tiny_data, tmp_path) -> None:
    tensors, info = load_tensors(model / "model.safetensors")
    open_set = replace(info.calibration.open_set, limits=dict.fromkeys(info.calibration.open_set.limits))
    calibration = replace(info.calibration, open_set=open_set)
    save_model_tensors(tmp_path / "model.safetensors", tensors, replace(info, calibration=calibration))
    image = next((tiny_data / "val").rglob("*.*"))
    (prediction,) = headstart.load(tmp_path / "model.safetensors").predict(image)
    assert prediction.none_of_these is None
    assert prediction.distance is not None
    for suffix in (".csv", ".jsonl", ".parquet"):
        out = tmp_path / f"a{suffix}"
        assert exit_code("predict", tmp_path / "model.safetensors", image, "--out", out) == 0
        if suffix == ".csv":
            (found,) = csv.DictReader(out.read_text().splitlines())
        else:
            (found,) = [json.loads(out.read_text())] if suffix == ".jsonl" else pq.read_table(out).to_pylist()
        assert found["none_of_these"] in (None, "")
        assert float(found["distance"]) == pytest.approx(prediction.distance, abs=1e-5)


# ------------------------------------------------------------------------------------------------- batches


@pytest.mark.slow
def test_the_logits_of_an_image_do_not_depend_on_workers_or_on_the_start(model, mixed) -> None:
    predictor = Predictor(model)
    listed = [Listed(str(path)) for path in mixed]
    computed = {}
    for workers, start in ((0, 0), (2, 0), (2, 3)):
        found = list(stream(predictor, listed[start:], batch_size=2, num_workers=workers))
        assert [one for batch in found for one in batch.images] == listed[start:]
        logits = [batch.outputs.logits for batch in found]
        assert sum(map(len, logits)) == sum(reason is None for batch in found for reason in batch.reasons)
        computed[workers, start] = np.concatenate(logits)
    assert np.array_equal(computed[0, 0], computed[2, 0])
    assert np.array_equal(computed[2, 3], computed[2, 0][-len(computed[2, 3]) :])


def test_only_a_few_batches_are_read_ahead(model, tiny_data) -> None:
    path = str(next((tiny_data / "val").rglob("*.*")))
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield Listed(path)

    stopped = False
    found = stream(Predictor(model), endless(), batch_size=4, num_workers=2, stopped=lambda: stopped)
    for _ in range(5):
        next(found)
    assert drawn <= 4 * (5 + 2 * 2 + 2)
    stopped = True
    assert len(list(found)) <= 2 * 2 + 2


# ------------------------------------------------------------------------------------------------- parts


SMALL_PARTS = ("--part_rows", 3, "--batch_size", 2, "--embeddings")


def table_of(folder: Path) -> list[str]:
    return pq.read_table(folder)["path"].to_pylist()


@pytest.mark.slow
def test_a_folder_holds_every_image_once_and_in_order(model, mixed, mixed_list, tmp_path, capsys) -> None:
    out = tmp_path / "parts"
    arguments = ("predict", model, mixed_list, mixed_list, *SMALL_PARTS, "--top", 3)
    assert exit_code(*arguments, "--out", f"{out}/") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"part-{at:012d}-{min(at + 3, 16):012d}.parquet" for at in range(0, 16, 3)]
    assert table_of(out) == [str(path) for path in mixed] * 2
    assert json.loads((state_of(out) / "summary").read_text())["unreadable"] == 4  # the long one is no longer too long
    assert str(pq.read_schema(out / names[0]).field("embedding").type) == "fixed_size_list<element: float>[512]"
    assert exit_code("predict", model, mixed_list, "--out", tmp_path / "one.parquet", "--embeddings", "--top", 3) == 0
    alone, parts = pq.read_table(tmp_path / "one.parquet"), pq.read_table(out).slice(0, 8)
    assert alone.schema.names == parts.schema.names
    assert alone["predicted"].equals(parts["predicted"])
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    capsys.readouterr()
    assert exit_code(*arguments, "--out", f"{out}/") == 0
    assert re.search(r"16 images, 0 ", capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("part-*")} == before


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.slow
def test_a_missing_part_is_made_again_to_the_bit(num_workers: int, model, mixed_list, tmp_path) -> None:
    """Three images a part and two a batch: a batch must not span two parts, and its last one is not full."""
    out = tmp_path / "parts"
    arguments = ("predict", model, mixed_list, mixed_list, *SMALL_PARTS, "--out", f"{out}/", "--num_workers")
    assert exit_code(*arguments, num_workers) == 0
    parts = {part: part.read_bytes() for part in sorted(out.glob("part-*"))}
    assert len(parts) == 6
    for again in (list(parts)[1:2], list(parts)[3:]):
        for part in again:
            part.unlink()
        (out / f".{again[0].name}.123.tmp").write_bytes(b"half")
        assert exit_code(*arguments, 2 - num_workers) == 0
        assert {part: part.read_bytes() for part in sorted(out.glob("part-*"))} == parts
        assert not list(out.glob(".*"))


def test_another_list_model_or_option_is_refused(model, mixed, tmp_path, capsys) -> None:
    out = tmp_path / "parts"
    assert exit_code("predict", model, *mixed[:4], "--out", f"{out}/") == 0
    other = write_model(tmp_path / "other", precision="bf16")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for arguments, pattern in (
        ((model, *mixed[:3]), rf"image 4\b.*{mixed[3]}"),
        ((model, *mixed[:5]), rf"image 5\b.*{mixed[4]}"),
        ((model, *mixed[1:5]), rf"image 1\b.*{mixed[0]}.*{mixed[1]}"),
        ((other, *mixed[:4]), "model_sha256"),
        ((model, *mixed[:4], "--precision", "bf16"), 'precision.*"no".*"bf16"'),
        ((model, *mixed[:4], "--top", "2"), "columns"),
        ((model, *mixed[:4], "--confidence", "0.8"), r"confidence.*\b0\.9\b.*\b0\.8\b"),
        ((model, *mixed[:4], "--part_rows", "2"), r"part_rows.*\b4096\b.*\b2\b"),
    ):
        capsys.readouterr()
        assert exit_code("predict", *arguments, "--out", f"{out}/") == 2
        error = capsys.readouterr().err
        assert re.search(pattern, error)
        assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_of_something_else_is_refused(model, mixed, tmp_path, capsys) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert exit_code("predict", model, mixed[0], "--out", tmp_path / "mine") == 2
    assert "letter.txt" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_other_readers_find_the_rows_of_a_folder_and_nothing_else(model, mixed_list, tmp_path) -> None:
    import datasets

    out = tmp_path / "parts"
    assert exit_code("predict", model, mixed_list, *SMALL_PARTS, "--out", f"{out}/") == 0
    rows = len(Path(mixed_list).read_text().splitlines())
    assert {path.suffix for path in out.rglob("*")} == {".parquet"}  # Polars looks into hidden folders
    assert pq.read_table(out).num_rows == pq.read_table(sorted(out.glob("**/*.parquet"))).num_rows == rows
    datasets.disable_progress_bars()
    for pattern in ({"data_dir": str(out)}, {"data_files": f"{out}/**"}, {"data_files": f"{out}/*.parquet"}):
        read = datasets.load_dataset("parquet", **pattern, cache_dir=str(tmp_path / "cache"))
        assert read["train"].num_rows == rows


def test_a_folder_of_the_former_layout_is_continued(tmp_path) -> None:
    listed = [Listed(f"{number}.jpg") for number in range(9)]
    begin_or_continue(tmp_path / "job", listed, {"top": 1}, block_rows=4)
    for former, name in {"_images.parquet": "images", "_settings.json": "settings"}.items():
        (state_of(tmp_path / "job") / name).rename(tmp_path / "job" / former)
    (tmp_path / "job" / "part-000000000000-000000000004.parquet").touch()
    job = begin_or_continue(tmp_path / "job", listed, {"top": 1}, block_rows=4)
    assert job.missing(process=0, num_processes=1) == [(4, 8), (8, 9)]
    assert [path.name[:5] for path in (tmp_path / "job").iterdir()] == ["part-"]


def test_a_folder_whose_parts_were_deleted_starts_again_with_other_settings(tmp_path) -> None:
    listed = [Listed(f"{number}.jpg") for number in range(9)]
    begin_or_continue(tmp_path / "job", listed, {"top": 1}, block_rows=4)
    (tmp_path / "job").rmdir()
    job = begin_or_continue(tmp_path / "job", listed[:5], {"top": 2}, block_rows=4)
    assert job.missing(process=0, num_processes=1) == [(0, 4), (4, 5)]


@pytest.mark.slow
def test_a_damaged_part_or_job_file_is_refused_by_name(model, mixed_list, tmp_path, capsys) -> None:
    out = tmp_path / "parts"
    arguments = ("predict", model, mixed_list, "--part_rows", 3, "--out", f"{out}/")
    assert exit_code(*arguments) == 0
    first, second = sorted(out.glob("part-*"))[:2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes()[:-100])
    assert exit_code(*arguments) == 2
    assert first.name in capsys.readouterr().err
    first.write_bytes(kept)
    stored = (state_of(out) / "images").read_bytes()
    (state_of(out) / "images").write_bytes(stored[:-9])
    assert exit_code(*arguments) == 2
    assert str(state_of(out) / "images") in capsys.readouterr().err
    (state_of(out) / "images").write_bytes(stored)
    first.rename(out / "part-000000000000-000000000004.parquet")
    assert exit_code(*arguments) == 2
    assert second.name in capsys.readouterr().err  # the two overlap
    (state_of(out) / "settings").write_text("{")
    assert exit_code(*arguments) == 2
    assert str(state_of(out) / "settings") in capsys.readouterr().err


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_the_processes_share_the_rows_without_overlap(num_processes, tmp_path) -> None:
    listed = [Listed(f"{number}.jpg") for number in range(23)]
    job = begin_or_continue(tmp_path / "job", listed, {}, block_rows=4)
    (tmp_path / "job" / "part-000000000004-000000000007.parquet").touch()  # of a run that was asked to stop
    (tmp_path / "job" / "part-000000000012-000000000016.parquet").touch()
    shares = [job.missing(process=rank, num_processes=num_processes) for rank in range(num_processes)]
    rows = sorted(row for share in shares for start, stop in share for row in range(start, stop))
    assert rows == [*range(4), 7, *range(8, 12), *range(16, 23)]
    for share in shares:
        found = [[int(one.path[:-4]) for one in images] for images in job.images(share)]
        assert found == [list(range(first, end)) for first, end in share]


# ------------------------------------------------------------------------------------------------- kills and signals


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """300 small images, and 3 files that are not images."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(300):
        draw(number % 3, number).resize((40, 40)).save(folder / f"{number:04d}.jpg")
    for number in range(3):
        (folder / f"{number:04d}.bad.jpg").write_bytes(b"no image")
    return folder


def start(*argv: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "headstart", "predict", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for_parts(out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*"))) < count:
        assert time.monotonic() < deadline, "no part was written"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.extended)])
def test_killed_and_started_again_it_has_every_image_once(kills, model, many, tmp_path, capsys) -> None:
    out = tmp_path / "parts"
    arguments = (model, many, "--out", f"{out}/", "--part_rows", 16, "--batch_size", 4, "--num_workers", 2)
    with start(*arguments) as process:
        wait_for_parts(out, 2)
        psutil.Process(process.pid).children()[-1].kill()  # as the system does if it runs out of memory
        assert process.wait(timeout=60) == 1
        error = process.stderr.read()
        assert error.startswith("headstart: ")
        assert "--num_workers" in error
        assert error.count("\n") == 1
    for kill in range(1, kills + 1):
        with start(*arguments, process_group=0) as process:
            wait_for_parts(out, 2 + 3 * kill)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (state_of(out) / "summary").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert exit_code("predict", *arguments) == 0
    assert "3 of 303" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a part was written twice"
    assert Counter(table_of(out)) == Counter(map(str, many.iterdir()))


@pytest.mark.slow
def test_a_folder_stopped_by_sigterm_keeps_its_rows_and_is_continued(model, many, tmp_path) -> None:
    out = tmp_path / "parts"
    arguments = (model, many, "--out", f"{out}/", "--part_rows", 70, "--batch_size", 4, "--num_workers", 2)
    with start(*arguments, process_group=0) as process:
        wait_for_parts(out, 1)
        os.killpg(process.pid, signal.SIGTERM)  # to its workers, too
        assert process.wait(timeout=60) == 143
        error = process.stderr.read()
        assert re.match(rf"headstart: .*SIGTERM.*{out}", error)
        assert error.count("\n") == 1
    kept = sorted(out.glob("part-*"))
    assert 1 < len(kept) < 5
    assert kept[-1].name not in [f"part-{at:012d}-{at + 70:012d}.parquet" for at in range(0, 350, 70)]
    assert exit_code("predict", *arguments) == 0
    assert set(kept) <= set(out.glob("part-*"))
    assert table_of(out) == sorted(map(str, many.iterdir()))


@contextmanager
def endless(lines: bytes) -> Iterator[int]:
    """The reading end of a pipe that gets these lines again and again, until nobody reads it."""
    reading, writing = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                os.write(writing, lines)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield reading
    finally:
        os.close(reading)
        writer.join()
        os.close(writing)


@pytest.mark.slow
def test_a_file_stopped_by_sigterm_is_named_incomplete(model, many, tmp_path) -> None:
    """The list of names has no end, so that the job cannot be complete before the signal."""
    out = tmp_path / "a.csv"
    names = b"".join(os.fsencode(path) + b"\n" for path in many.iterdir())
    options = ("--batch_size", 4, "--num_workers", 2)
    with endless(names) as pipe, start(model, "-", "--out", out, *options, stdin=pipe, process_group=0) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".a.incomplete.csv*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        count = int(re.search(r"SIGTERM .*\b(\d+) images.*a\.incomplete\.csv", process.stderr.read())[1])
    assert not out.exists()
    assert count == len(list(csv.DictReader((tmp_path / "a.incomplete.csv").read_text().splitlines())))


@pytest.mark.distributed
def test_two_processes_share_a_folder(model, many, tmp_path) -> None:
    out = tmp_path / "parts"
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(many.iterdir())[:75]))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "headstart",
        "predict",
        str(model),
        "-",
        "--out",
        f"{out}/",
        "--part_rows",
        "10",
        "--num_workers",
        "1",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    with (tmp_path / "list.txt").open() as names:
        done = subprocess.run(command, stdin=names, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert table_of(out) == (tmp_path / "list.txt").read_text().split()
    assert json.loads((state_of(out) / "summary").read_text())["images"] == 75
    assert re.search(r"\b75 images.*\b40\b", done.stdout)


def test_several_processes_need_a_folder(model, mixed, monkeypatch, capsys) -> None:
    complete = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in complete.items():
        monkeypatch.setenv(name, value)
    for out in ([], ["--out", "a.csv"]):
        assert exit_code("predict", model, mixed[0], *out) == 2
        assert "--out FOLDER/" in capsys.readouterr().err
