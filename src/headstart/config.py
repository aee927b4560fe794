"""The configuration: one frozen tree, checked when it is built. Knows no torch, so that help is instant."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headstart.errors import InputError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _require_finite(section: str, values: object) -> None:
    for name, value in vars(values).items():
        _require(
            not isinstance(value, float) or math.isfinite(value), f"{section}.{name} is {value}; it must be finite"
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are and how one becomes a tensor."""

    root: str = ""
    """Required. Image folder: train/ and val/ of class folders, or just class folders (then split by val_fraction).
    Or a .zip of one, a .csv, .tsv, .jsonl or .parquet file that lists images, .tar or .parquet shards (a folder, a pattern, a
    URL), a dataset saved by datasets, or hf://NAME from the Hub."""
    image_column: str | None = None
    """Where a table names or holds the images. null: found by name and type."""
    label_column: str | None = None
    """Where a table has the classes. null: found by name."""
    split_column: str | None = None
    """Where a table says train or val. null: found by name, if there is one."""
    group_column: str | None = None
    """Where a table says what must stay on one side of a split, such as a patient. null: nowhere."""
    split: Literal["folder", "stratified", "stable"] = "folder"
    """folder: the data's own train and val, else stratified. stratified: all images, split anew, the same share of each class.
    stable: anew, by a hash of each image alone, so that none changes sides when images are added."""
    val_fraction: float = 0.2
    """Share of the images that measures, where the folder has no val/. Stratified, seeded, in the manifest."""
    folds: int = 0
    """Split into so many equal parts instead, of which number `fold` measures. 0: no."""
    fold: int = 0
    """Which of the folds measures, from 0."""
    groups: str = ""
    """Images that must stay on one side of a split: a regular expression with one group, looked for in the path, such as
    '(patient[0-9]+)', or a .csv file with the columns path and group. Copies of a file always stay together."""
    on_bad_file: Literal["refuse", "skip"] = "refuse"
    """Files that cannot be decoded, and classes without images or on one side only: stop and list them, or leave them out
    and list them."""
    rescan: bool = False
    """Look at every file again, also at those whose size, time and inode are as they were at the last scan."""
    image_size: int = 224
    """Side of the square the network sees, px."""
    resize_size: int | None = None
    """Evaluation: short side before the centre crop, px. null: image_size * 256 / 224."""
    min_crop_scale: float = 0.25
    """Training views: smallest area of the random crop, as a share of the image. 1: the view of evaluation."""
    hflip: bool = True
    """Training views: mirror half of them left to right."""
    vflip: bool = False
    """Training views: mirror half of them upside down (images with no up, such as cells or aerial views)."""
    sampling: Literal["natural", "balanced"] = "natural"
    """natural: each training image once per epoch. balanced: as many images per epoch, the same number of each class; those of
    rare classes come several times, in different views (docs/imbalance.md; for an exact head the same as optim.class_weights)."""
    augment_on: Literal["workers", "device"] = "workers"
    """Where training views are made. device: workers decode, the GPU crops, resizes and mirrors; the views are the same but
    for rounding (docs/data.md)."""
    jpeg: Literal["exact", "scaled"] = "exact"
    """scaled: large JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, in training and ever after, as long as twice the
    pixels remain that the smallest crop needs; 1.6 times as fast for 12 megapixels (docs/data.md)."""
    shuffle_images: int = 10_000
    """Parquet shards: images that are shuffled together at most, in row groups of 128 MiB at most, so that a row group need not
    be read for every image."""
    cache: Literal["auto", "disk", "off"] = "auto"
    """auto: decode each image once and keep the pixels, in up to a quarter of the free memory. disk: in a file that is
    mapped into memory, up to a quarter of the free disk under ~/.cache, gone with the run. off: decode for every use.
    The result does not depend on it."""
    num_workers: int | None = None
    """Decoding processes per training process. null: 1 on a CPU, else by measuring views and steps; the result does not depend
    on it."""

    def __post_init__(self) -> None:
        _require_finite("data", self)
        _require(
            0.0 < self.val_fraction < 1.0,
            f"data.val_fraction is {self.val_fraction}; it must lie between 0 and 1, for example 0.2",
        )
        _require(
            self.folds == 0 or (self.folds >= 2 and 0 <= self.fold < self.folds),
            f"data.folds is {self.folds} and data.fold {self.fold}; use at least 2 folds, and a fold from 0 to folds - 1",
        )
        _require(
            self.split != "folder" or not (self.folds or self.groups),
            "data.folds and data.groups say how to split; add --data.split stratified or stable",
        )
        _require(
            not (self.groups and self.group_column),
            f"data.groups and data.group_column {self.group_column!r} both say what stays together; leave one of them out",
        )
        _require(self.image_size >= 32, f"data.image_size is {self.image_size}; ResNet-18 needs at least 32 px")
        _require(
            self.resize_size is None or self.resize_size >= self.image_size,
            f"data.resize_size {self.resize_size} is smaller than data.image_size {self.image_size}; "
            "leave it null or make it at least as large",
        )
        _require(
            0.0 < self.min_crop_scale <= 1.0,
            f"data.min_crop_scale is {self.min_crop_scale}; it must be in (0, 1], for example 0.08",
        )
        _require(
            self.augment_on == "workers" or self.min_crop_scale < 1 or self.hflip or self.vflip,
            "data.augment_on device has nothing to do where no view is varied (data.min_crop_scale 1, hflip and vflip false)",
        )
        _require(self.shuffle_images >= 1, f"data.shuffle_images is {self.shuffle_images}; use 1 or more")
        _require(
            self.num_workers is None or self.num_workers >= 0,
            f"data.num_workers is {self.num_workers}; use 0 or more, or null to let it be chosen",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: torchvision's ResNet-18 with a new head."""

    weights: str = "imagenet"
    """imagenet (torchvision IMAGENET1K_V1, cached or downloaded once), bundled (ours, in the package, no network),
    none (random), or the path of a .safetensors or .pth file with torchvision keys."""
    head_init: Literal["zero", "normal"] = "zero"
    """zero: the loss before the first step is exactly ln(classes). normal: torch's default for a linear layer."""


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Which parts train."""

    name: Literal["fine_tune", "frozen_head", "probe_then_tune"] = "fine_tune"
    """fine_tune: everything trains. frozen_head: only the new head; the backbone stays as it is, to the bit.
    probe_then_tune: the head of frozen_head first, solved exactly, then fine_tune from there; the better one is kept."""
    features: Literal["bank", "recompute"] = "bank"
    """frozen_head: compute the backbone's outputs once, keep them in the feature bank and solve for the head (see the
    section probe), or run the backbone in every epoch as the tutorials do (then the sections optim and train apply)."""
    batchnorm: Literal["train", "freeze"] = "train"
    """fine_tune: whether BatchNorm statistics follow the data or stay as pretrained. (frozen_head: always stay.)"""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The head on the features of a frozen backbone, where they come from the bank."""

    solver: Literal["lbfgs", "sgd", "full_batch"] = "lbfgs"
    """lbfgs: the optimum of multinomial logistic regression, in float64. sgd: the tutorials' minibatches, by the sections
    optim and train. full_batch: `steps` gradient steps on all images at once, by the section optim."""
    augmented_copies: int = 0
    """Augmented views of each training image that are kept beside the plain one. They are functions of the seed."""
    l2: float | None = None
    """lbfgs: weight of |W|^2 / 2 beside the sum of the losses, on standardised features. null: by cross-validation."""
    folds: int = 5
    """Of the cross-validation; stratified."""
    one_standard_error: bool = False
    """Take the strongest l2 that is not worse than the best by more than a standard error, instead of the best."""
    steps: int = 1000
    """Of full_batch."""

    def __post_init__(self) -> None:
        _require(self.augmented_copies >= 0, f"probe.augmented_copies is {self.augmented_copies}; use 0 or more")
        _require(self.l2 is None or self.l2 > 0, f"probe.l2 is {self.l2}; it must be positive, or null to be chosen")
        _require(self.folds >= 2, f"probe.folds is {self.folds}; it must be at least 2")
        _require(self.steps >= 1, f"probe.steps is {self.steps}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule. The learning rate is a pure function of the step."""

    name: Literal["sgd", "adamw"] = "adamw"
    """sgd has momentum; adamw is torch's, betas 0.9 and 0.999."""
    lr: float = 0.01
    """Peak learning rate of the head."""
    backbone_lr: float | None = 0.0001
    """Peak learning rate of the backbone in fine_tune. null: the same as lr."""
    momentum: float = 0.9
    """Of sgd."""
    eps: float = 1e-5
    """Of adamw: added to the root of the squared gradients. At torch's 1e-8 the rounding of the smallest gradients decides
    whole steps, and 3 processes soon differ from 1 (docs/distributed.md)."""
    weight_decay: float = 0.0
    """Not applied to biases and norms."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """cosine falls to 0 at the end; step multiplies by step_gamma every step_epochs."""
    warmup_epochs: float = 0.5
    """Linear rise of the learning rate at the start; may be a fraction."""
    step_epochs: float = 7.0
    """Of the step schedule."""
    step_gamma: float = 0.1
    """Of the step schedule."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes. The reported losses of evaluation have none."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class counts the same in the loss, however many images it has. For every strategy and solver."""
    logit_adjustment: float = 0.0
    """Times log(share of the class in training), added to the logits in training only (Menon et al. 2021), so that rare classes
    are not predicted rarely: 1 aims at the mean recall of the classes. 0: off. For every strategy and solver."""
    clip_norm: float | None = None
    """Largest norm of the gradient; longer ones are scaled down. null: no clipping."""

    def __post_init__(self) -> None:
        _require_finite("optim", self)
        _require(self.lr > 0, f"optim.lr is {self.lr}; it must be positive, for example 0.01")
        _require(
            self.backbone_lr is None or self.backbone_lr > 0,
            f"optim.backbone_lr is {self.backbone_lr}; make it positive, or use --strategy.name frozen_head to freeze it",
        )
        _require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; it must be in [0, 1)")
        _require(self.eps > 0, f"optim.eps is {self.eps}; it must be positive, for example 1e-8")
        _require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; it must not be negative")
        _require(self.warmup_epochs >= 0, f"optim.warmup_epochs is {self.warmup_epochs}; it must not be negative")
        _require(self.step_epochs > 0, f"optim.step_epochs is {self.step_epochs}; it must be positive")
        _require(0 < self.step_gamma <= 1, f"optim.step_gamma is {self.step_gamma}; it must be in (0, 1]")
        _require(
            0 <= self.label_smoothing < 1,
            f"optim.label_smoothing is {self.label_smoothing}; it must be in [0, 1)",
        )
        _require(
            self.logit_adjustment >= 0,
            f"optim.logit_adjustment is {self.logit_adjustment}; it must not be negative, for example 1",
        )
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm is {self.clip_norm}; it must be positive, or null for none",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in which portions."""

    epochs: int = 8
    """Passes over the training images; validation follows each."""
    batch_size: int = 32
    """Images per optimizer step, over all processes and accumulation: the recipe does not change with the machine."""
    accumulation: int = 1
    """Backward passes per optimizer step, to fit batch_size into little memory."""
    eval_batch_size: int = 64
    """Images per forward pass in evaluation, over all processes (rounded up to a multiple of them)."""
    first_image_size: int | None = None
    """Train on smaller images first, px: the side rises to data.image_size over two thirds of the run. null: no."""
    seeds: int = 1
    """Train with so many seeds, from `seed` on, in --out/seed_0 and so on, and sum up: mean, spread, interval."""
    folds: int = 0
    """Train so many times, each with another part of all images set aside, in --out/fold_0 and so on, so that each image is
    measured once by a network that was not trained on it. 0: no."""
    resume: str = "never"
    """never, auto (continue the run in --out if it has a checkpoint, else start), or the path of a checkpoint."""
    checkpoint_steps: int = 0
    """Optimizer steps between two checkpoints to resume from. 0: by the clock alone. A signal always saves one."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints to resume from. 0: by the steps alone."""

    def __post_init__(self) -> None:
        _require_finite("train", self)
        _require(self.folds == 0 or self.folds >= 2, f"train.folds is {self.folds}; use at least 2, or 0 for none")
        _require(
            self.folds == 0 or self.seeds == 1,
            f"train.folds {self.folds} and train.seeds {self.seeds} go one at a time",
        )
        for name in ("epochs", "batch_size", "accumulation", "eval_batch_size", "seeds"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} is {value}; it must be at least 1")
        _require(
            self.first_image_size is None or self.first_image_size >= 32,
            f"train.first_image_size is {self.first_image_size}; ResNet-18 needs at least 32 px",
        )
        for name in ("checkpoint_steps", "checkpoint_minutes"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name} is {value}; use 0 or more")
        _require(
            self.batch_size % self.accumulation == 0,
            f"train.batch_size {self.batch_size} is not divisible by train.accumulation {self.accumulation}; "
            f"use {_nearest_multiple(self.batch_size, self.accumulation)}",
        )


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The machine. Nothing here changes what is computed, but for rounding."""

    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "auto"
    """auto: bf16 where processor or GPU multiply it natively, else fp16 on CUDA, else no. The choice is recorded."""
    channels_last: bool = True
    """Memory layout of images and weights; the faster one for convolutions on CPUs and recent GPUs."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""
    bank: str = ""
    """Folder of the feature bank. Empty: headstart/bank in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    quiet: bool = False
    """Say nothing but warnings, mistakes and, at the end, the run folder."""
    trackers: str = ""
    """Who else is told of the run: tensorboard, trackio, mlflow, wandb, several with commas between (docs/tracking.md)."""
    tracker_project: str = "headstart"
    """The project, or experiment, that trackers file the run under."""
    compile: bool = False
    """Compile the network with torch.compile (inductor; on a CPU it needs a C++ compiler). Weights and keys stay as they are."""
    timeout_minutes: float = 30.0
    """How long processes wait for each other before they give up: longer than the longest scan of the images."""
    threads: int | None = None
    """Threads of torch per process. null: usable cores / processes on this machine, whatever the launcher exported."""

    def __post_init__(self) -> None:
        _require_finite("runtime", self)
        _require(self.timeout_minutes > 0, f"runtime.timeout_minutes is {self.timeout_minutes}; it must be positive")
        _require(
            self.threads is None or self.threads >= 1,
            f"runtime.threads is {self.threads}; use 1 or more, or null to let it be chosen",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    out: str = ""
    """Run folder to write. Empty: runs/<strategy>-<number>."""
    seed: int = 0
    """Sample order, views and head initialisation are functions of it; no random state is stored."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be in [0, 2^63)")
        _require(
            self.strategy.features == "bank" or self.strategy.name != "probe_then_tune",
            "strategy.features recompute does not go with strategy.name probe_then_tune; leave it at bank",
        )
        balancing = {
            "data.sampling balanced": self.data.sampling == "balanced",
            "optim.class_weights balanced": self.optim.class_weights == "balanced",
            f"optim.logit_adjustment {self.optim.logit_adjustment}": self.optim.logit_adjustment > 0,
        }
        asked = [name for name, wanted in balancing.items() if wanted]
        _require(
            len(asked) < 2,
            f"{' and '.join(asked)} each make up for rare classes, and together they overdo it; choose one",
        )
        _require(
            not (self.train.folds and self.data.folds),
            f"train.folds {self.train.folds} trains on every fold, and data.folds {self.data.folds} on one; choose one of them",
        )
        first = self.train.first_image_size
        _require(
            first is None or first <= self.data.image_size,
            f"train.first_image_size {first} exceeds data.image_size {self.data.image_size}; make it smaller",
        )

    @property
    def trains_on_features(self) -> bool:
        """Whether nothing but a head is trained, on cached features."""
        return self.strategy.name == "frozen_head" and self.strategy.features == "bank"

    @property
    def uses_bank(self) -> bool:
        """Whether the head is solved for on stored features (and not, or not only, trained by epochs)."""
        return self.strategy.name != "fine_tune" and self.strategy.features == "bank"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as nested dicts -> {"data.root": ..., "seed": ...}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return found


MAY_CHANGE = (
    "out",
    "runtime",
    "data.root",
    "data.cache",
    "data.num_workers",
    "data.rescan",
    "train.accumulation",
    "train.resume",
    "train.checkpoint_steps",
    "train.checkpoint_minutes",
)
"""Keys, and one whole section, that an interrupted run may be continued with other values of."""


def may_change(name: str) -> bool:
    return name in MAY_CHANGE or name.split(".")[0] in MAY_CHANGE


def check_divisible(train: TrainConfig, *, num_processes: int) -> None:
    """Raise InputError unless each process gets the same number of images in each backward pass."""
    parts = num_processes * train.accumulation
    if train.batch_size % parts:
        raise InputError(
            f"train.batch_size {train.batch_size} is not divisible by {num_processes} processes"
            f" x {train.accumulation} accumulation = {parts}; use {_nearest_multiple(train.batch_size, parts)}"
        )


def _nearest_multiple(value: int, divisor: int) -> str:
    below, above = value // divisor * divisor, -(-value // divisor) * divisor
    return f"{below} or {above}" if below else str(above)
