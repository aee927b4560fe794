"""What `headstart predict` prints: a table of the first images, with what the model is not certain of."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headstart.cli.tables import plain_console, print_table
from headstart.wording import shown

if TYPE_CHECKING:
    from headstart.predict.output_table import Columns

NAMED = 4  # classes of a prediction set that a row names


def print_predictions(rows: Sequence[Mapping[str, Any]], columns: "Columns", *, total: int) -> None:
    """rows: of the table of predictions, the first of `total`."""
    sets = _has_limit(columns)
    notes = [_note(row, sets=sets) for row in rows]
    titles = ("image", "predicted", "probability", *(["note"] if any(notes) else []))
    lines = []
    for row, note in zip(rows, notes, strict=True):
        best = row.get("top") or [{"class": row["predicted"], "probability": row["probability"]}]
        known = row["error"] is None
        names = "\n".join(shown(entry["class"]) for entry in best) if known else ""
        numbers = "\n".join(f"{entry['probability']:.3f}" for entry in best) if known else ""
        lines.append((shown(row["path"]), names, numbers, note)[: len(titles)])
    print_table(titles, lines, right=("probability",))
    if total > len(rows):
        plain_console().print(f"and {total - len(rows):,} more; --out FILE writes all of them", soft_wrap=True)


def _note(row: Mapping[str, Any], *, sets: bool) -> str:
    if row["error"] is not None:
        return f"unreadable: {row['error']}"
    if row.get("none_of_these"):
        return "none of these"
    possible = row.get("prediction_set") or []
    if not sets or len(possible) < 2:
        return ""
    more = f" or {len(possible) - NAMED} more" if len(possible) > NAMED else ""
    return f"not certain: {' or '.join(map(shown, possible[:NAMED]))}{more}"


def _has_limit(columns: "Columns") -> bool:
    """Whether the model file holds a limit for prediction sets; without one, each set has all classes."""
    calibration = columns.predictor.info.calibration
    return calibration is not None and calibration.conformal.limits[columns.options.confidence] is not None
