"""What is written of each image: the columns, and csv, jsonl and parquet files of them, written as they come."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from headstart.model.frozen_trunk import FEATURES
from headstart.predict.predictor import Predictor, Question
from headstart.predict.stream import Computed

PROBABILITY = "probability_"
BUFFERED_ROWS = 4096  # are written at once: a row group of a parquet file


class Columns:
    """path, predicted, probability and error; where the model file knows of them prediction_set, none_of_these and distance; on request
    top (list of class and probability), probability_<class> for every class, and embedding (list of 512 float32)."""

    def __init__(self, predictor: Predictor, question: Question, *, top: bool, probabilities: bool) -> None:
        self._predictor, self._question, self._top, self._probabilities = predictor, question, top, probabilities
        calibration = predictor.info.calibration
        fields: list[Any] = [
            ("path", pa.string()),
            ("predicted", pa.string()),
            ("probability", pa.float64()),
            ("error", pa.string()),
        ]
        if calibration is not None:
            fields.append(("prediction_set", pa.list_(pa.string())))
            if calibration.open_set is not None:
                fields += [("none_of_these", pa.bool_()), ("distance", pa.float64())]
        if top:
            fields.append(("top", pa.list_(pa.struct([("class", pa.string()), ("probability", pa.float64())]))))
        if probabilities:
            fields += [(f"{PROBABILITY}{name}", pa.float64()) for name in predictor.classes]
        if question.embeddings:
            fields.append(("embedding", pa.list_(pa.float32(), FEATURES)))
        metadata = {"classes": json.dumps(list(predictor.classes), ensure_ascii=False)}
        self.schema = pa.schema(fields, metadata=metadata)

    def rows(self, computed: Computed) -> pa.RecordBatch:
        """One row per image, in order; of an image that could not be read only path and error."""
        answers = self._predictor.answer(computed.outputs, self._question)
        classes = self._predictor.classes
        unread = np.array([reason is not None for reason in computed.reasons], dtype=bool)
        place = np.cumsum(~unread) - 1  # of an image among those that were read

        def numbers(values: np.ndarray) -> pa.Array:
            spread = np.zeros((len(unread), *values.shape[1:]), values.dtype)
            spread[~unread] = values
            if spread.ndim == 1:
                return pa.array(spread, mask=unread)
            flat = pa.array(spread.reshape(-1))
            return pa.FixedSizeListArray.from_arrays(flat, spread.shape[1], mask=pa.array(unread))

        def each(value: Any) -> list[Any]:
            return [None if unread[row] else value(place[row]) for row in range(len(unread))]

        best = np.take_along_axis(answers.probabilities, answers.best, axis=1)
        columns: dict[str, Any] = {
            "path": [image.path for image in computed.images],
            "predicted": each(lambda row: classes[answers.best[row, 0]]),
            "probability": numbers(best[:, 0]),
            "error": list(computed.reasons),
        }
        if answers.inside is not None:
            inside = answers.inside
            columns["prediction_set"] = each(lambda row: [classes[code] for code in np.flatnonzero(inside[row])])
        if answers.none_of_these is not None and answers.distance is not None:
            columns |= {"none_of_these": numbers(answers.none_of_these), "distance": numbers(answers.distance)}
        if self._top:
            columns["top"] = each(
                lambda row: [
                    {"class": classes[code], "probability": value}
                    for code, value in zip(answers.best[row], best[row].tolist(), strict=True)
                ]
            )
        if self._probabilities:
            columns |= {
                f"{PROBABILITY}{name}": numbers(answers.probabilities[:, code]) for code, name in enumerate(classes)
            }
        if answers.embeddings is not None:
            columns["embedding"] = numbers(answers.embeddings)
        arrays = [pa.array(columns[field.name], field.type) for field in self.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


class _Format(Protocol):
    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class TableFile:
    """A file of rows by its extension: .csv, .jsonl or .parquet. Rows are kept until there are BUFFERED_ROWS."""

    def __init__(self, path: Path, schema: pa.Schema, *, suffix: str) -> None:
        """suffix: what it is, whatever the name of the file."""
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._file: _Format
        if suffix == ".csv":
            self._file = _Csv(path, schema)
        elif suffix == ".jsonl":
            self._file = _Jsonl(path)
        else:
            self._file = pq.ParquetWriter(path, schema)

    def write(self, rows: pa.RecordBatch) -> None:
        self._waiting.append(rows)
        if sum(len(batch) for batch in self._waiting) >= BUFFERED_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting, self._schema))
            self._waiting = []


class _Csv:
    """Lists are written as JSON."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._lists = [field.name for field in schema if pa.types.is_nested(field.type)]
        plain = [pa.field(f.name, pa.string()) if f.name in self._lists else f for f in schema]
        self._schema = pa.schema(plain)
        self._writer = pyarrow.csv.CSVWriter(path, self._schema)

    def write_table(self, table: pa.Table) -> None:
        for name in self._lists:
            texts = [None if value is None else _json(_plain(value)) for value in table[name].to_pylist()]
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(texts, pa.string()))
        self._writer.write_table(table.cast(self._schema))

    def close(self) -> None:
        self._writer.close()


class _Jsonl:
    """The probabilities of all classes are one object."""

    def __init__(self, path: Path) -> None:
        self._lines = path.open("w", encoding="utf-8")

    def write_table(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            known = {name: _plain(value) for name, value in row.items() if not name.startswith(PROBABILITY)}
            named = {n.removeprefix(PROBABILITY): value for n, value in row.items() if n.startswith(PROBABILITY)}
            if named:
                known["probabilities"] = None if row["predicted"] is None else named
            self._lines.write(_json(known) + "\n")

    def close(self) -> None:
        self._lines.close()


def _plain(value: Any) -> Any:
    """A list of classes with their probabilities as pairs."""
    if isinstance(value, Sequence) and value and isinstance(value[0], dict):
        return [[entry["class"], entry["probability"]] for entry in value]
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
