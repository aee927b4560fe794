"""Every sample once: predictions of a split, the metrics of the table, and `headstart evaluate`."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from headstart.config import DataConfig, RuntimeConfig
from headstart.data.manifest import build_eval_manifest
from headstart.data.samples import Manifest, summarize
from headstart.data.sources.open import COLUMN_KEYS, open_source
from headstart.data.transforms import Preprocess
from headstart.errors import InputError, Stopped
from headstart.files import check_out, write_atomically
from headstart.model.calibration import CONFIDENCE, WRONGLY_FLAGGED, Calibration, cross_fitted
from headstart.model.model_file import ModelInfo, find_model, load_model
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.processes import on_main
from headstart.runtime.signals import StopRequest


@dataclass(frozen=True)
class Predictions:
    """logits: (n, C) float32; labels: (n,) int64; features: (n, 512) float32, what the head saw, if asked for; all in the
    order of the split's samples."""

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax in float64, (n, C)."""
        logits = self.logits.astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    @property
    def right(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.logits.argmax(axis=1) == self.labels)

    @property
    def correct(self) -> int:
        return int(self.right.sum())


def collect(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: Any,
    spec: Preprocess,
    *,
    num_samples: int,
    stop: StopRequest,
    channels_last: bool,
    head: torch.nn.Module | None = None,
) -> Predictions:
    """Run a prepared eval loader through the model, the same result in every process.

    Accelerate evens the last batch out by repeating samples; rows are put in place by sample index, so each
    counts once. head: the layer of the model whose inputs are wanted as features; the model must not be compiled then.
    Raises Stopped within one batch of a signal.
    """
    model.eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parts: list[tuple[torch.Tensor, ...]] = []
    seen: list[torch.Tensor] = []
    hook = None if head is None else head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        with torch.inference_mode():
            for batch in loader:
                pixels = spec.normalize(batch["pixels"].contiguous(memory_format=layout))
                parts.append((batch["index"], batch["label"], model(pixels).float(), *seen))
                seen.clear()
                if stop.agreed(accelerator):
                    raise Stopped("evaluation was interrupted")
            index, labels, *columns = (accelerator.gather(torch.cat(column)) for column in zip(*parts, strict=True))
    finally:
        if hook is not None:
            hook.remove()
    rows = index.cpu().numpy()
    all_labels = np.full(num_samples, -1, dtype=np.int64)
    all_labels[rows] = labels.cpu().numpy()
    assert (all_labels >= 0).all(), "a sample was not evaluated"
    tables = []
    for column in columns:
        table = np.empty((num_samples, column.shape[1]), dtype=np.float32)
        table[rows] = column.cpu().numpy()
        tables.append(table)
    return Predictions(tables[0], all_labels, tables[1] if head is not None else None)


def describe(
    predictions: Predictions,
    classes: Sequence[str],
    *,
    measure: Callable[[np.ndarray, np.ndarray], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """All metrics with their intervals, None where nothing says how wide one is; per-class values by class name.

    measure: metrics.measure, or what runs it elsewhere.
    """
    from headstart.evaluation import statistics

    if measure is None:
        from headstart.evaluation import metrics  # imports evaluate, which takes its time

        measure = metrics.measure
    values = measure(predictions.probabilities, predictions.labels)
    order = ("n", "correct", "accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy", "loss")
    described: dict[str, Any] = {name: values[name] for name in order if name in values}
    described["accuracy_ci95"] = list(statistics.wilson(values["correct"], values["n"]))
    probabilities, labels = predictions.probabilities, predictions.labels
    counts = np.array(values["confusion_matrix"])
    described["balanced_accuracy_ci95"] = list(
        statistics.balanced_accuracy_interval(np.diag(counts), counts.sum(axis=1))
    )
    losses = statistics.log_losses(probabilities, labels)
    described["loss_ci95"] = _listed(statistics.bootstrap(losses, labels, lowest=0.0))
    brier = statistics.brier_scores(probabilities, labels)
    described["brier"] = float(brier.mean())
    described["brier_ci95"] = _listed(statistics.bootstrap(brier, labels, lowest=0.0, highest=2.0))
    described |= asdict(statistics.calibration_error(probabilities, labels))
    described["per_class"] = {
        name: {
            "precision": values["precision"][i],
            "precision_ci95": _interval(counts[i, i], counts[:, i].sum()),
            "recall": values["recall"][i],
            "recall_ci95": _interval(counts[i, i], counts[i].sum()),
            "n": int(counts[i].sum()),
        }
        for i, name in enumerate(classes)
    }
    described["confusion_matrix"] = values["confusion_matrix"]
    return described


def describe_calibration(predictions: Predictions, calibration: Calibration) -> dict[str, Any]:
    """What the model file's calibration says of the validation images that it was fitted on, or by.

    A temperature that was fitted on them is measured by cross-fitting: each tenth with that of the other nine."""
    from headstart.evaluation import statistics

    logits, labels = predictions.logits, predictions.labels
    if calibration.fitted_on == "validation logits":
        probabilities = cross_fitted(logits, labels)
    else:
        probabilities = calibration.probabilities(logits)
    sizes = calibration.prediction_sets(logits).sum(axis=1)
    described: dict[str, Any] = {
        "temperature": calibration.temperature,
        "fitted_on": calibration.fitted_on,
        "n": calibration.n,
        "loss": float(statistics.log_losses(probabilities, labels).mean()),
        "brier": float(statistics.brier_scores(probabilities, labels).mean()),
        **asdict(statistics.calibration_error(probabilities, labels)),
        "prediction_sets": {
            "confidence": CONFIDENCE,
            "exact": calibration.conformal.exact,
            "mean_size": float(sizes.mean()),
            "of_one_class": int((sizes == 1).sum()),
            "n": calibration.conformal.n,
        },
    }
    open_set = calibration.open_set
    if open_set is not None:
        described["none_of_these"] = {
            "wrongly_flagged": WRONGLY_FLAGGED,
            "distance": open_set.limits[WRONGLY_FLAGGED],
            "reference_images": len(open_set.reference),
            "n": open_set.n,
        }
    return described


def _interval(successes: Any, total: Any) -> list[float] | None:
    """Wilson's, None of nothing."""
    from headstart.evaluation.statistics import wilson

    return _listed(wilson(int(successes), int(total))) if total else None


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def headline(values: dict[str, Any]) -> str:
    """'accuracy 88.2 % [82.1, 92.4], 135 of 153'."""
    low, high = values["accuracy_ci95"]
    return f"accuracy {values['accuracy']:.1%} [{low:.1%}, {high:.1%}], {values['correct']} of {values['n']}".replace(
        "%", " %"
    )


def evaluate_manifest(accelerator: Accelerator, manifest: Manifest, model: Any, info: ModelInfo) -> Predictions:
    """The model on all samples of split val, as the training run measured them: to the last digit on its machine."""
    from headstart.data.loaders import eval_loader, load_images

    samples = manifest.of("val")
    if info.measured_on == "feature bank":
        return _through_the_trunk(accelerator, manifest, model, info)
    rows = load_images(samples, info.classes)
    batch_size = round_up(info.eval_batch_size, accelerator.num_processes)
    loader = eval_loader(rows, samples, info.preprocess.view(), batch_size=batch_size, num_workers=0)
    if info.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model, loader = accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(loader)
    with StopRequest() as stop:
        return collect(
            accelerator,
            model,
            loader,
            info.preprocess,
            num_samples=len(samples),
            stop=stop,
            channels_last=info.channels_last,
        )


def _through_the_trunk(accelerator: Accelerator, manifest: Manifest, model: Any, info: ModelInfo) -> Predictions:
    """The folded trunk and the head in float64, as a run on the feature bank computes them; the bank here is a
    temporary one, so that it is this file's network that is measured."""
    from headstart.features import logistic_regression
    from headstart.features.bank import Bank
    from headstart.features.extraction import features_of, fill, rows_of, views_of
    from headstart.model.frozen_trunk import FEATURES, FrozenTrunk

    tensors = model.state_dict()
    samples = manifest.of("val")
    rows = rows_of(manifest.source, samples, views_of(DataConfig(), info.preprocess, num_views=0, seed=0))
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder, StopRequest() as stop:
        location = on_main(accelerator, lambda: folder)
        bank = Bank(Path(location), {"evaluation": True}, width=FEATURES)
        fill(
            accelerator,
            bank,
            rows,
            info.preprocess,
            lambda: FrozenTrunk(tensors, precision=info.mixed_precision, device=accelerator.device),
            num_workers=None,
            stop=stop,
        )
        head = logistic_regression.Head(tensors["fc.weight"].double().numpy(), tensors["fc.bias"].double().numpy())
        features = features_of(bank, rows)[:]
        logits = head.logits(features).astype(np.float32)
        accelerator.wait_for_everyone()
    return Predictions(logits, samples.codes(info.classes), features)


def evaluate_command(
    run: str,
    *,
    data: str,
    out: str | None,
    on_bad_file: str,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`headstart evaluate`: print the measurements and return them. split: see build_eval_manifest; columns: of the keys
    data.*_column those that are not the run's."""
    check_out(out)
    set_threads(None)
    model, info = load_model(find_model(run))
    accelerator = start_accelerator(RuntimeConfig(mixed_precision=info.mixed_precision))  # type: ignore[arg-type]
    asked, trained = dict(columns or {}), _data_of(Path(run))
    theirs = {key: trained[key] for key in COLUMN_KEYS if key != "group_column" and trained.get(key)}
    manifest = on_main(
        accelerator,
        lambda: build_eval_manifest(
            open_source(DataConfig(root=data, **(theirs | asked)), to_measure=True, asked=asked),
            classes=info.classes,
            on_bad_file=on_bad_file,
            trained_on=_training_images(Path(run)),
            split=split,
            anew=trained.get("split", "folder") != "folder",
            decoder=info.preprocess.decode,
        ),
    )
    if manifest.skipped:
        accelerator.print(f"not used, {len(manifest.skipped)}: {summarize(manifest.skipped)}")
    values = describe(evaluate_manifest(accelerator, manifest, model, info), info.classes)
    if accelerator.is_main_process:
        _print(values)
        if out is not None:
            text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            try:
                write_atomically(Path(out), lambda path: path.write_text(text, encoding="utf-8"))
            except OSError as error:
                raise InputError(f"--out {out}: {error.strerror}") from None
    return values


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _data_of(run: Path) -> dict[str, Any]:
    """The section data of the run's configuration; empty if only the model file is at hand."""
    path = (run if run.is_dir() else run.parent) / "config.yaml"
    if not path.is_file():
        return {}
    import yaml

    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({error}); it says how the data were split") from None


def _training_images(run: Path) -> Callable[[str, str], bool]:
    """Whether a (sha256, path) was trained on, by the run's manifest; never, if only the model file is at hand.

    Of a content that the run both trained on and measured on under two names, only the measured copy counts.
    """
    path = (run if run.is_dir() else run.parent) / "manifest.parquet"
    if not path.is_file():
        return lambda sha256, path: False
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=["sha256", "path", "split"]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise InputError(f"{path} is damaged ({error}); it says which images the model was trained on") from None
    measured = {row["sha256"] for row in rows if row["split"] == "val"}
    trained = {(row["sha256"], row["path"]) for row in rows if row["split"] == "train"}
    only_trained = {sha256 for sha256, _ in trained} - measured
    return lambda sha256, path: sha256 in only_trained or (sha256, path) in trained


def _print(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    console.print(headline(values), highlight=False)
    console.print(
        f"loss {values['loss']:.4f}, balanced accuracy {values['balanced_accuracy']:.4f}, macro F1 {values['macro_f1']:.4f}",
        highlight=False,
    )
    console.print(
        f"Brier score {values['brier']:.4f}, calibration error {values['ece']:.4f} (up to {values['ece_by_chance95']:.4f} by chance)",
        highlight=False,
    )
    table = Table("class", "n", "precision", "recall", "95 % interval")
    for name, row in values["per_class"].items():
        seen = ["-", "-", "-"]
        if row["n"]:
            low, high = row["recall_ci95"]
            seen = [f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{low:.3f} to {high:.3f}"]
        table.add_row(name, str(row["n"]), *seen)
    console.print(table)
