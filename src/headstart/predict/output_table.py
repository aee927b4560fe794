"""The table of predictions: its columns, and csv, jsonl and parquet files that are written row by row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from headstart.predict.image_paths import NO_COLUMNS
from headstart.predict.kept_columns import PROBABILITY, KeptColumns
from headstart.predict.predictor import PredictionOptions, Predictor
from headstart.predict.stream import Computed
from headstart.spreadsheet import BOM, defused

BUFFERED_ROWS = 4096  # rows that are written at once: a row group of a parquet file


class Columns:
    """path, the kept columns of the list, predicted, probability and error. If the model file is calibrated:
    prediction_set, none_of_these and distance. On request: top (list of class and probability), probability_<class>
    for every class, and embedding (float32)."""

    def __init__(
        self,
        predictor: Predictor,
        options: PredictionOptions,
        *,
        top: bool,
        probabilities: bool,
        kept: KeptColumns = NO_COLUMNS,
    ) -> None:
        self.predictor, self.options, self.kept = predictor, options, kept
        self._top, self._probabilities = top, probabilities
        calibration = predictor.info.calibration
        fields: list[Any] = [
            ("path", pa.string()),
            *kept.fields,
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
        if options.embeddings:
            fields.append(("embedding", pa.list_(pa.float32(), predictor.backbone.features)))
        metadata = {"classes": json.dumps(list(predictor.classes), ensure_ascii=False)}
        self.schema = pa.schema(fields, metadata=metadata)

    def rows(self, computed: Computed) -> pa.RecordBatch:
        """One row per image, in order; for an unreadable image only path and error."""
        found = self.predictor.predictions(computed.outputs, self.options)
        classes = self.predictor.classes
        best = np.take_along_axis(found.probabilities, found.best, axis=1)
        columns: dict[str, Any] = {
            "predicted": [classes[code] for code in found.best[:, 0]],
            "probability": best[:, 0],
        }
        if found.inside is not None:
            columns["prediction_set"] = [[classes[code] for code in np.flatnonzero(row)] for row in found.inside]
        if found.distance is not None:
            flagged = [None] * len(best) if found.none_of_these is None else found.none_of_these
            columns |= {"none_of_these": flagged, "distance": found.distance}
        if self._top:
            columns["top"] = [
                [{"class": classes[code], "probability": value} for code, value in zip(codes, values, strict=True)]
                for codes, values in zip(found.best, best.tolist(), strict=True)
            ]
        if self._probabilities:
            columns |= {f"{PROBABILITY}{name}": found.probabilities[:, code] for code, name in enumerate(classes)}
        if found.embeddings is not None:
            width = found.embeddings.shape[1]
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(found.embeddings.reshape(-1)), width)
        unreadable = np.array([reason is not None for reason in computed.reasons], dtype=bool)
        place = pa.array(np.cumsum(~unreadable) - 1, mask=unreadable)  # index among the readable images
        arrays = {name: pa.array(values, self.schema.field(name).type).take(place) for name, values in columns.items()}
        arrays["path"] = pa.array([image.path for image in computed.images], pa.string())
        arrays["error"] = pa.array(computed.reasons, pa.string())
        for place, field in enumerate(self.kept.fields):
            arrays[field.name] = pa.array([image.kept[place] for image in computed.images], field.type)
        return pa.RecordBatch.from_arrays([arrays[field.name] for field in self.schema], schema=self.schema)


class TableFile:
    """A .csv, .jsonl or .parquet file of rows, which are written BUFFERED_ROWS at a time.

    In .csv lists are JSON; in .jsonl the probabilities of all classes are one object."""

    def __init__(self, path: Path, schema: pa.Schema, *, suffix: str, excel: bool = False) -> None:
        """suffix: the type of the file, which may have another name while it is written; excel: whether a .csv is meant
        for spreadsheet programs."""
        self._schema, self._suffix, self._excel = schema, suffix, excel
        self._waiting: list[pa.RecordBatch] = []
        self._file: Any
        if suffix == ".csv":
            nested = [field.with_type(pa.string()) if pa.types.is_nested(field.type) else field for field in schema]
            if excel:
                nested = [field.with_name(defused(field.name)) for field in nested]
            self._binary = path.open("wb")
            self._binary.write(BOM.encode() if excel else b"")
            self._file = pyarrow.csv.CSVWriter(self._binary, pa.schema(nested))
        elif suffix == ".jsonl":
            self._file = path.open("w", encoding="utf-8")
        else:
            self._file = pq.ParquetWriter(path, schema)

    def write(self, rows: pa.RecordBatch) -> None:
        self._waiting.append(rows)
        if sum(len(batch) for batch in self._waiting) >= BUFFERED_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()
        if self._suffix == ".csv":
            self._binary.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting, self._schema)
        self._waiting = []
        if self._suffix == ".jsonl":
            self._file.writelines(_json(_json_object(row)) + "\n" for row in table.to_pylist())
        else:
            if self._suffix == ".csv":
                table = _without_lists(table)
            self._file.write_table(_for_spreadsheets(table) if self._excel else table)


def _without_lists(table: pa.Table) -> pa.Table:
    columns = [
        pa.array([None if value is None else _json(_plain(value)) for value in column.to_pylist()], pa.string())
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _for_spreadsheets(table: pa.Table) -> pa.Table:
    columns = [
        pa.array([None if value is None else defused(value) for value in column.to_pylist()], pa.string())
        if pa.types.is_string(column.type)
        else column
        for column in table.columns
    ]
    return pa.table(columns, names=[defused(name) for name in table.column_names])


def _json_object(row: dict[str, Any]) -> dict[str, Any]:
    known = {name: _plain(value) for name, value in row.items() if not name.startswith(PROBABILITY)}
    named = {name.removeprefix(PROBABILITY): value for name, value in row.items() if name.startswith(PROBABILITY)}
    if named:
        known["probabilities"] = None if row["predicted"] is None else named
    return known


def _plain(value: Any) -> Any:
    """Pairs for a list of classes with their probabilities; anything else as it is."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [[entry["class"], entry["probability"]] for entry in value]
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # str: kept dates and decimal numbers
