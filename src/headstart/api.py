"""The public Python interface."""

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_args, overload

from headstart.config import DataConfig, ModelConfig, ProbeConfig, RunConfig, RuntimeConfig, StrategyConfig
from headstart.errors import InputError, Stopped
from headstart.exporters.options import check_options
from headstart.files import check_out, user_path
from headstart.messages import ProgressStyle
from headstart.results import Choice, Comparison, DataReport, Evaluation, Export, Verification
from headstart.wording import headline, nearest, plural

if TYPE_CHECKING:
    import torch

    from headstart.predict.predictor import Predictor
    from headstart.runs.summary import RepeatsSummary, Summary

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run, or several with different seeds or folds. A notebook shows it with its predictions."""

    path: Path

    @functools.cached_property
    def summary(self) -> "Summary | RepeatsSummary":
        """The content of summary.json. Raises InputError if it is missing or damaged."""
        from headstart.runs.summary import RepeatsSummary, Summary

        return RepeatsSummary.read(self.path) if self._folders else Summary.read(self.path)

    @functools.cached_property
    def _folders(self) -> list[str]:
        """Of repeated runs."""
        from headstart.config_io import repeated_runs

        return repeated_runs(self.path)

    @property
    def _spread(self) -> dict[str, Any] | None:
        """Of the accuracies of repeated runs."""
        spread = getattr(self.summary, "spread", None)
        return None if spread is None else dict(spread["accuracy"])

    @property
    def accuracy(self) -> float:
        """On the validation images, 0 to 1; the mean of repeated runs."""
        return float(self._spread["mean"] if self._spread else self.summary.val["accuracy"])

    @property
    def accuracy_ci95(self) -> tuple[float, float]:
        """95% confidence interval of the accuracy."""
        low, high = (self._spread and self._spread["ci95"]) or self.summary.val["accuracy_ci95"]
        return float(low), float(high)

    @property
    def report_path(self) -> Path:
        """report.html; of repeated runs, the one of all of them."""
        return self.path / "report.html"

    @property
    def _first(self) -> Path:
        """The run folder; of repeated runs, the first."""
        return self.path / self._folders[0] if self._folders else self.path

    def predictor(self, *, device: "str | torch.device | None" = None, precision: str = "measured") -> "Predictor":
        """The trained model, as `headstart.load` gives it; of the first of repeated runs. Raises InputError."""
        return load(self._first, device=device, precision=precision)

    def __repr__(self) -> str:
        if self._folders:
            low, high = self.accuracy_ci95
            text = f"accuracy {self.accuracy:.1%} [{low:.1%}, {high:.1%}], {plural(len(self._folders), 'run')}"
        else:
            text = f"{headline(self.summary.val)} correct"
        return f"Run({str(self.path)!r}: {text})"

    def _repr_html_(self) -> str:
        from base64 import b64encode
        from html import escape

        picture, image = self._first / "val_predictions.png", ""
        if picture.is_file():
            encoded = b64encode(picture.read_bytes()).decode()
            image = f'<br><img style="max-width: 100%" alt="Predictions" src="data:image/png;base64,{encoded}">'
        return f"<p>{escape(repr(self))}<br>Report: {escape(str(self.report_path))}{image}</p>"

    def __fspath__(self) -> str:
        """The run folder, so that a Run can be passed to every function that takes a path."""
        return str(self.path)


def _python_names(message: str) -> str:
    """The message with Python arguments instead of options: 'out' for '--out', 'overwrite=True' for '--overwrite'.

    Complete commands stay as they are, so that they can be pasted."""

    def argument(found: re.Match[str]) -> str:
        option = found["option"]
        return found[0] if option is None else f"{option}=True" if option in _FLAGS else option

    return re.sub(r"headstart [a-z]+ [^;]*|(?<![\w-])--(?P<option>[a-z][\w.]*)", argument, message)


_FLAGS = ("common", "labels", "overwrite")


def _in_python(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Leave the process of the user as it was, let the messages of InputError name arguments instead of options, and
    raise KeyboardInterrupt for Ctrl-C."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from headstart.runtime.user_process import restored_process

        with restored_process():
            try:
                return function(*args, **kwargs)
            except InputError as error:
                error.args = (_python_names(str(error)),)
                raise
            except Stopped as stop:
                if stop.signal_name == "SIGINT":
                    raise KeyboardInterrupt(str(stop)) from None
                raise

    return call


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = nearest(str(value), choices) or f"; use one of {', '.join(choices)}"
        raise InputError(f"{name} is {value!r}, which is not a valid value{hint}")


@overload
def train(
    data: "str | os.PathLike[str] | RunConfig",
    *,
    config: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]" = (),
    out: str | os.PathLike[str] | None = None,
    progress: ProgressStyle = "auto",
    **options: object,
) -> Run: ...


@overload  # for **{"optim.lr": 0.01}, whose values a type checker compares with the type of every argument
def train(
    data: "str | os.PathLike[str]",
    *,
    config: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]" = (),
    **options: object,
) -> Run: ...


@_in_python  # type: ignore[misc]
def train(
    data: "str | os.PathLike[str] | RunConfig",
    *,
    config: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]" = (),
    out: str | os.PathLike[str] | None = None,
    progress: ProgressStyle = "auto",
    **options: object,
) -> Run:
    """Train a classifier on a folder of images, as `headstart train` does.

    Messages go to `logging.getLogger("headstart")`: `logging.basicConfig(level="INFO")` shows them. Ctrl-C raises
    KeyboardInterrupt once the state is saved, a second Ctrl-C at once; `train.resume="auto"` continues. With decoding
    processes on a busy CPU, set OMP_WAIT_POLICY=PASSIVE before Python starts, as the command line does.

    Args:
        data: image folder or another source (`data.root`), or a complete RunConfig, which takes no other options.
        config: YAML file or name of a shipped configuration ("fine_tune", "frozen_head", "probe_then_tune"), or
            several, of which later ones win. Without one: frozen_head.
        out: run folder to create; None for runs/STRATEGY-N.
        progress: "auto" shows a bar in a terminal or a notebook, "terminal" also prints lines elsewhere, "silent" shows
            nothing.
        options: any key of the configuration with its value, such as `**{"optim.lr": 0.01}`.

    Returns:
        The finished run.

    Raises:
        InputError: the data, a key or a value cannot be used; nothing is written.
        Stopped: SIGTERM or another signal stopped the run after its state was saved.
    """
    from headstart.config_io import load_config

    if isinstance(data, RunConfig):
        if config or out is not None or options:
            raise InputError(
                "data is a RunConfig, which is complete; set its fields instead of passing further options"
            )
        resolved = data
    else:
        given = {"data.root": user_path(data)} | ({} if out is None else {"out": user_path(out)}) | options
        files = [config] if isinstance(config, str | os.PathLike) else list(config)
        resolved = load_config(
            [user_path(name) for name in files], {key: _as_text(value) for key, value in given.items()}
        )
    _check_choice("progress", progress, get_args(ProgressStyle))
    from headstart.training.run import run

    return Run(run(resolved, progress="silent" if resolved.runtime.quiet else progress))


def _as_text(value: object) -> str | None:
    """A value as the command line would take it; None stays None."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if value is None else os.fspath(value) if isinstance(value, os.PathLike) else str(value)


@_in_python
def load(
    source: str | os.PathLike[str], *, device: "str | torch.device | None" = None, precision: str = "measured"
) -> "Predictor":
    """Load a finished model, ready to `predict` images.

    Args:
        source: a Run, a run folder, a model.safetensors, or "hf://OWNER/NAME" for a repository that `headstart push`
            made.
        device: "cpu", "cuda", "cuda:1", "mps" or "xpu"; None for the GPU if there is one.
        precision: "measured" (as in the run's evaluation; fp16 becomes fp32 without a GPU), "fp32", "bf16", "fp16" or
            "auto" (the fastest that the device supports natively).

    Returns:
        The predictor; `predictor.predict("a.jpg")` classifies.

    Raises:
        InputError: there is no such model, it is damaged, or the device or precision is not available.
    """
    from headstart.predict.predictor import Predictor

    return Predictor(source, device=device, precision=precision)


@_in_python
def evaluate(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    on_bad_file: Literal["refuse", "skip"] = "refuse",
    out: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Evaluate a finished run on labelled images, each image once, as `headstart evaluate` does.

    Images that the run was trained on are not evaluated; they are listed in the `skipped` of the result.

    Args:
        run: a Run, a run folder or a model.safetensors.
        data: any source that `train` accepts: an image folder, a table (.csv, .parquet), shards (.tar), a saved
            dataset or hf://. None for the test set of the data that the run was trained on.
        split: split to evaluate, such as "test"; None for val if `data` has one, else test, else all images, and for
            test if `data` is None.
        image_column: column of a table with the images or their paths; None for that of the run.
        label_column: column of a table with the classes; None for that of the run.
        split_column: column of a table with the split; None for that of the run.
        on_bad_file: "refuse" raises InputError that lists unreadable images, "skip" leaves them out.
        out: file to write the result to, a page if it ends in .html, else JSON; replaced if it exists. None for no
            file.

    Returns:
        Accuracy, loss, calibration error and other metrics with 95% intervals, also per class.

    Raises:
        InputError: there is no such model or data, an image is unreadable, a class is unknown to the model, or `out`
            cannot be written.
    """
    _check_choice("on_bad_file", on_bad_file, ("refuse", "skip"))
    place = None if out is None else user_path(out)
    check_out(place)
    from headstart.report.evaluation import write_evaluation
    from headstart.runs.evaluate import evaluate_run

    found = evaluate_run(
        user_path(run),
        data=None if data is None else user_path(data),
        split=split,
        on_bad_file=on_bad_file,
        columns=_given(image_column=image_column, label_column=label_column, split_column=split_column),
    )
    if place is not None:
        write_evaluation(found, place)
    return found.result


@_in_python
def compare(
    *runs: str | os.PathLike[str], common: bool = False, out: str | os.PathLike[str] | None = None
) -> Comparison:
    """Compare finished runs statistically on the same validation images, as `headstart compare` does.

    The predictions are those that the runs stored; no model is run.

    Args:
        runs: at least two Runs or run folders; each of the others is compared with the first.
        common: use only the images that all runs were evaluated on; False raises InputError if the images differ.
        out: .html page to write, with the images that the runs disagree on; replaced if it exists; None for no page.

    Returns:
        For each comparison the difference of accuracy and loss with 95% intervals, the p-value of McNemar's test
        (adjusted for the number of comparisons), a verdict, and the images for which the predictions differ.

    Raises:
        InputError: a folder is not a finished run, the runs have different classes or images, or `out` cannot be
            written.
    """
    from headstart.report.comparison_command import compare_runs

    place = None if out is None else user_path(out)
    return compare_runs([user_path(run) for run in runs], common=common, out=place)


@_in_python
def choose(
    data: str | os.PathLike[str],
    *,
    backbones: Sequence[str] = (),
    sizes: Sequence[int] = (),
    weights: str | None = None,
    out: str | os.PathLike[str] | None = None,
    folds: int = 5,
    repeats: int | None = None,
    images: int = 10_000,
    seed: int = 0,
    split: Literal["folder", "stratified", "stable"] | None = None,
    groups: str = "",
    on_bad_file: Literal["refuse", "skip"] = "refuse",
    bank: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
) -> Choice:
    """Choose a backbone by cross-validation of a linear probe on the training images, as `headstart choose` does.

    The validation images are not used. Features and results are kept in the feature bank, so that the same call
    continues after an interruption.

    Args:
        data: any source that `train` accepts.
        backbones: names, as `model.backbone`; none for those whose weights are on this machine.
        sizes: sides of the network input, px; each backbone is a candidate at each size. None for the size of the
            backbone.
        weights: of all candidates, as `model.weights`; None for the best ones of each that need no download.
        out: folder to write choose.json and choose.html to; None for no files.
        folds: folds of the cross-validation, 3 to 20; more than 5 need as many images or groups in each class.
        repeats: repetitions of the cross-validation; None for 1 to 5, depending on the number of images.
        images: largest number of training images; more are sampled.
        seed: seed of the split and of the folds.
        split: way to split the images into train and val, as `data.split`; None for "folder", or "stratified" with
            groups.
        groups: groups of images that share a fold, as `data.groups`.
        on_bad_file: "refuse" raises InputError that lists unreadable images, "skip" leaves them out.
        bank: folder of the feature bank; None for the one in the user's cache folder.
        image_column: column of a table with the images or their paths; None to find it by name.
        label_column: column of a table with the classes; None to find it by name.
        split_column: column of a table with the split; None to find it by name.
        group_column: column of a table with groups of images that share a fold; None for no groups.

    Returns:
        The candidates with accuracy, loss, speed and size, their comparison with the best one, its expected
        accuracy, and the command that trains it.

    Raises:
        InputError: an argument or the data cannot be used, or `out` already contains a result.
        Stopped: SIGTERM or another signal ended the work; what was finished is stored.
    """
    _check_choice("on_bad_file", on_bad_file, ("refuse", "skip"))
    if split is not None:
        _check_choice("split", split, ("folder", "stratified", "stable"))
    for name, number in (("folds", folds), ("repeats", repeats), ("images", images), ("seed", seed)):
        if type(number) is not int and not (name == "repeats" and number is None):
            raise InputError(f"{name} is {number!r}; it must be a whole number")
    from headstart.selection.command import choose_backbone
    from headstart.selection.options import config_of

    columns = _given(
        image_column=image_column, label_column=label_column, split_column=split_column, group_column=group_column
    )
    config = config_of(
        user_path(data),
        on_bad_file=on_bad_file,
        split=split,
        groups=groups,
        columns=columns,
        folds=folds,
        seed=seed,
        bank=None if bank is None else user_path(bank),
    )
    return choose_backbone(
        config,
        backbones=backbones,
        sizes=sizes,
        weights=weights,
        repeats=repeats,
        images=images,
        out=None if out is None else user_path(out),
    )


@_in_python
def verify(
    run: str | os.PathLike[str], *, device: "str | torch.device | None" = None, precision: str | None = None
) -> Verification:
    """Check that this machine reproduces the reference outputs of a model file, as `headstart verify` does.

    The model file contains the logits of seven drawn images, the golden inputs. They are drawn and classified again and
    compared with the stored logits.

    Args:
        run: a Run, a run folder or a model.safetensors.
        device: "cpu", "cuda", "cuda:1", "mps" or "xpu"; None for the GPU if there is one.
        precision: "fp32", "bf16", "fp16", "auto" or "measured" (as in the run's evaluation); None for both "fp32" and
            "measured".

    Returns:
        The differences by precision. The result is true if all of them are within their tolerances and the weights are
        unchanged.

    Raises:
        InputError: there is no such model, it contains no golden inputs, or the device or the precision is not
            available.
    """
    from headstart.diagnostics.verify import verify as verify_run

    return verify_run(user_path(run), device=device, precision=precision)


@_in_python
def export(
    run: str | os.PathLike[str],
    format: str,
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    images: int = 1000,
    allow_loss: float | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a finished model for another program and check it there, as `headstart export` does.

    The exported model runs in its own runtime on drawn images of unusual sizes and modes and on validation images of
    the run. It is kept only if its probabilities agree with those of `Predictor.predict` in fp32.

    Args:
        run: a Run, a run folder or a model.safetensors.
        format: "torchvision", "transformers", "timm", "onnx", "onnx-uint8" (from image to probabilities), "int8",
            "pt2" or "openvino".
        out: file or folder to create.
        data: folder with the images of the run; None for where they were during training.
        images: largest number of validation images to compare.
        allow_loss: for "int8", acceptable loss of accuracy, 0 to 1; None for 0.02, two percentage points.
        overwrite: replace an earlier export.

    Returns:
        The path, and the comparison with the original.

    Raises:
        ExportRefused: the predictions of the exported model differ from those of the original; nothing is written.
        InputError: an argument is wrong, `out` exists, or a package that the format needs is not installed.
    """
    check_options(images=images, allow_loss=allow_loss)
    from headstart.exporters.command import export_run

    return export_run(
        user_path(run),
        format=format,
        out=user_path(out),
        data=None if data is None else user_path(data),
        images=images,
        allow_loss=allow_loss,
        overwrite=overwrite,
    )


@_in_python
def check_data(
    data: str | os.PathLike[str],
    *,
    labels: bool = False,
    out: str | os.PathLike[str] | None = None,
    weights: str = "bundled",
    image_size: int = 224,
    folds: int = 5,
    seed: int = 0,
    bank: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> DataReport:
    """Check a data set for broken files, copies, leaks, small classes and wrong labels, as `headstart data check` does.

    The data is not changed.

    Args:
        data: train/ and val/ of class folders, just class folders, or any other source that `train` accepts.
        labels: also search for wrong labels, with a cross-validated linear probe.
        out: folder to write doctor.html, doctor.json, fixes.csv and groups.csv to; None for no files.
        weights: backbone that confirms near copies and searches for wrong labels, as `model.weights`.
        image_size: side of the image that the backbone receives, px.
        folds: folds of the cross-validation.
        seed: seed of the folds.
        bank: folder of the feature bank; None for the one in the user's cache folder.
        image_column: column of a table with the images or their paths; None to find it by name.
        label_column: column of a table with the classes; None to find it by name.
        split_column: column of a table with the split; None to find it by name.

    Returns:
        All findings with suggestions, and a description of the images.

    Raises:
        InputError: there is nothing to check, an argument is wrong, or `out` already contains a report or lies inside
            the data. Problems of the data are findings, not errors.
    """
    config = RunConfig(
        seed=seed,
        data=DataConfig(
            root=user_path(data),
            image_size=image_size,
            on_bad_file="skip",
            **_given(image_column=image_column, label_column=label_column, split_column=split_column),
        ),
        model=ModelConfig(weights=weights),
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(folds=folds),
        runtime=RuntimeConfig(bank="" if bank is None else user_path(bank)),
    )
    from headstart.data_doctor.command import check_data as check

    return check(config, labels=labels, out=None if out is None else user_path(out))


def _given(**columns: str | None) -> dict[str, Any]:
    return {key: name for key, name in columns.items() if name is not None}
