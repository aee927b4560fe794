"""The demo of `headstart demo`: its commands, whether they are done, how long they take, what their results mean."""

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headstart.data.solar_cells import images_folder
from headstart.errors import InputError
from headstart.files import check_local, write_json
from headstart.results import Choice
from headstart.wording import plural

PLAN_FILE = "demo.json"
BACKBONES = ("resnet18", "lite0")
FORWARD_GFLOP = {"resnet18": 0.97, "lite0": 0.21}
"""Of one image of 112 x 112 pixels. A training step is three times as much."""
OLD_GFLOP_PER_S = 60.0
"""Speed of training on two cores of an old server, where `Stage.other_s` was measured."""


@dataclass(frozen=True)
class Plan:
    """images: number of images, of which half are held out for validation; image_size: pixels; epochs: of tuning."""

    images: int = 800
    image_size: int = 112
    epochs: int = 3


@dataclass(frozen=True)
class Stage:
    """One command of headstart.

    command: its arguments; called when it is about to run, because it may depend on results. is_done: whether its
    result is complete. meaning: of the result, for a newcomer. gflop: work of the networks; other_s: what else it takes
    at OLD_GFLOP_PER_S, seconds."""

    title: str
    purpose: str
    command: Callable[[], list[str]]
    is_done: Callable[[], bool]
    meaning: Callable[[], str]
    gflop: float = 0.0
    other_s: float = 1.0


class Demo:
    """The stages in the folder. Raises InputError if the images are not installed, or if the folder contains anything
    else."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        images_folder()
        self._check_folder()
        self.data = folder / "solar_cells"
        self.checked, self.choice = folder / "checked", folder / "choice"
        self.head, self.tuned = folder / "frozen_head", folder / "tuned"

    def _check_folder(self) -> None:
        folder, plan = self.folder, {"demo": 1, **asdict(self.plan)}
        check_local(folder, option="DIR")
        blocked = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
        if not blocked.is_dir():
            raise InputError(f"{folder}: {blocked} is a file, so no folder can be created there; name another place")
        if (folder / PLAN_FILE).is_file():
            try:
                then = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                then = None
            if then != plan:
                raise InputError(f"{folder} contains the demo of another version of headstart; name a new folder")
        elif folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and contains no demo; name a new folder")

    def create_folder(self) -> None:
        """Raises InputError if the system refuses."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / PLAN_FILE, {"demo": 1, **asdict(self.plan)})
        except OSError as error:
            raise InputError(f"{self.folder}: {error.strerror}; name another place") from None

    def stages(self) -> list[Stage]:
        plan = self.plan
        num_val = plan.images // 2
        num_train = plan.images - num_val
        forward = {name: gflop * (plan.image_size / 112) ** 2 for name, gflop in FORWARD_GFLOP.items()}
        return [
            Stage(
                "Data",
                f"{plan.images} of the 2,624 images of solar cells in elpv-dataset, functional or defective. Half of "
                "them are for training, and the other half is held out for validation.",
                lambda: ["data", "demo", str(self.data), "--images", str(plan.images), "--val_fraction", "0.5"],
                self.data.is_dir,
                lambda: "",
            ),
            Stage(
                "Check the data",
                "Copies of training images in the validation set and wrong labels distort every later number, so the "
                "check comes first.",
                self._check_command,
                (self.checked / "groups.csv").is_file,  # the last file that it writes
                self._check_meaning,
                gflop=plan.images * forward["resnet18"],
                other_s=8,
            ),
            Stage(
                "Train a new head",
                "The pretrained network stays frozen. Its outputs are already stored, so only a new last layer is "
                "trained.",
                self._head_command,
                (self.head / "summary.json").is_file,
                self._head_meaning,
                other_s=5,
            ),
            Stage(
                "Choose a backbone",
                "Cross-validation on the training images compares two pretrained networks. The validation images are "
                "not used.",
                self._choice_command,
                (self.choice / "choose.json").is_file,
                self._choice_meaning,
                gflop=num_train * forward["lite0"],
                other_s=14,
            ),
            Stage(
                "Tune the whole network",
                f"All parameters of the chosen network are trained for {plural(plan.epochs, 'epoch')}, starting from "
                "the new head.",
                self._tune_command,
                (self.tuned / "summary.json").is_file,
                lambda: "",
                gflop=plan.epochs * (3 * num_train + num_val) * forward["resnet18"],
                other_s=12,
            ),
            Stage(
                "Compare",
                "Both models were evaluated on the same images, so they are compared image by image.",
                lambda: ["compare", str(self.head), str(self.tuned), "--out", str(self.folder / "comparison.html")],
                lambda: False,  # takes no time
                self._comparison_meaning,
            ),
        ]

    def _check_command(self) -> list[str]:
        shutil.rmtree(self.checked, ignore_errors=True)  # of an interrupted check, which would be refused
        size = str(self.plan.image_size)
        return ["data", "check", str(self.data), "--labels", "--image_size", size, "--out", str(self.checked)]

    def _head_command(self) -> list[str]:
        return self._train_command("frozen_head", out=self.head, weights="bundled")

    def _choice_command(self) -> list[str]:
        size = str(self.plan.image_size)
        return ["choose", str(self.data), "--backbones", *BACKBONES, "--sizes", size, "--out", str(self.choice)]

    def _tune_command(self) -> list[str]:
        best = self._read_choice().candidates[0]
        options = ("--config", "demo", "--model.backbone", best.backbone, "--train.epochs", str(self.plan.epochs))
        often = ("--train.checkpoint_minutes", "0.5")
        return self._train_command("probe_then_tune", *options, *often, out=self.tuned, weights=best.weights)

    def _train_command(self, config: str, *options: str, out: Path, weights: str) -> list[str]:
        size = ("--data.image_size", str(self.plan.image_size))
        run = ("--model.weights", weights, "--out", str(out), "--train.resume", "auto")
        return ["train", str(self.data), "--config", config, *options, *size, *run]

    def _read_choice(self) -> Choice:
        from headstart.runs.files import read_file

        return read_file(self.choice, "choose.json", lambda path: Choice.from_json(path.read_text("utf-8")))

    def _check_meaning(self) -> str:
        from headstart.runs.files import read_json

        found = read_json(self.checked, "doctor.json")["counts"]
        leaks = sum(number for kind, number in found.items() if kind.endswith("duplicate_across_splits"))
        sentences = []
        if leaks:
            groups = plural(leaks, "group")
            sentences.append(
                f"{groups} of nearly identical images {'is' if leaks == 1 else 'are'} in both train and val, so the "
                "accuracies below are slightly optimistic."
            )
        else:
            sentences.append("No image of the training set is in the validation set.")
        if doubtful := found.get("suspected_label", 0):
            sentences.append(f"{plural(doubtful, 'label')} may be wrong; many of these images are merely hard.")
        return " ".join([*sentences, f"Look at them in {self.checked / 'doctor.html'}. The demo keeps all images."])

    def _head_meaning(self) -> str:
        from headstart.runs.summary import Summary

        val = Summary.read(self.head).val
        low, high = val["accuracy_ci95"]
        label, row = max(val["per_class"].items(), key=lambda item: item[1]["n"])
        return (
            f"With {val['n']} validation images, the accuracy on new images lies between {low:.1%} and {high:.1%} (95% "
            f"confidence). Always answering {label} would be correct for {row['n'] / val['n']:.1%}."
        )

    def _choice_meaning(self) -> str:
        choice = self._read_choice()
        (other,) = choice.candidates[1:]
        if choice.verdict(other) == "better":
            return f"{choice.chosen} is significantly better than {other.name} on these images, so it is tuned."
        return (
            f"The difference between {choice.chosen} and {other.name} is not significant: {choice.n} images are too "
            "few to tell. The demo tunes the one with the higher accuracy."
        )

    def _comparison_meaning(self) -> str:
        from headstart.report.comparison_command import compare_runs
        from headstart.runs.files import read_json

        (found,) = compare_runs([str(self.head), str(self.tuned)], common=False).comparisons
        seconds = [read_json(run, "summary.json")["wall_s"] for run in (self.head, self.tuned)]
        if found.verdict == "better":
            verdict = "The tuned model is significantly better."
        elif found.verdict == "worse":
            verdict = "The tuned model is significantly worse, so the frozen head is the one to use."
        else:
            verdict = (
                f"The difference of {found.points.split(' [')[0]} is not significant: with {found.n} images, it may be "
                "chance."
            )
        return f"{verdict} The head took {seconds[0]:.0f} s on stored features, and tuning took {seconds[1]:.0f} s."

    def next_steps(self) -> list[str]:
        """What the demo leaves behind, and the commands for the user's own images."""
        images = shlex.quote(str(self.data / "val" / "defective"))
        return [
            f"Report of the tuned model: {(self.tuned / 'report.html').absolute()}",
            f"Page of the comparison:    {(self.folder / 'comparison.html').absolute()}",
            "",
            "Classify images with the tuned model:",
            f"  headstart predict {shlex.quote(str(self.tuned))} {images}",
            "Your own images, one folder for each class, such as photos/ants and photos/bees:",
            "  headstart data check photos --labels --out checked",
            "  headstart train photos --out runs/first",
            "  headstart choose photos",
            "  headstart train --help",
        ]


def seconds_here(stages: Sequence[Stage], plan: Plan) -> float:
    """Estimated duration of the stages on this machine: about a second of training is measured."""
    import torch

    from headstart.backbones import RESNET18
    from headstart.config import RuntimeConfig
    from headstart.model.build import build_model
    from headstart.runtime.accelerator import set_threads, start_accelerator
    from headstart.runtime.precision import choose_precision
    from headstart.selection.speed import train_rate

    set_threads(None)
    device = start_accelerator(RuntimeConfig()).device
    precision, _ = choose_precision("auto", device)
    with torch.random.fork_rng(devices=[]):
        rate = train_rate(
            build_model(RESNET18, 2, tensors=None, head_init="zero", seed=0),
            image_size=plan.image_size,
            num_classes=2,
            precision=precision,
            device=device,
            seconds=0.5,
        )
    gflop_per_s = rate * 3 * FORWARD_GFLOP["resnet18"] * (plan.image_size / 112) ** 2
    slowness = max(OLD_GFLOP_PER_S / gflop_per_s, 0.3)  # a fast GPU does not make the rest fast
    return sum(stage.gflop / gflop_per_s + stage.other_s * slowness for stage in stages)
