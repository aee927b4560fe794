"""Methods for rare classes: balanced sampling, class weights, logit adjustment; in the loop and on the bank."""

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.runs import small
from torch.nn import functional as F

from headstart.config import DataConfig, OptimConfig, ProbeConfig, RunConfig, StrategyConfig
from headstart.data.samples import Manifest, Sample, Samples
from headstart.data.sources.folders import ClassFolders
from headstart.errors import InputError
from headstart.features.extraction import Extraction
from headstart.features.training_set import BankFeatures
from headstart.recipe.loss import TrainingLoss
from headstart.runtime.accelerator import start_accelerator
from headstart.training.fit_head import fit_head
from headstart.training.run import run

WAYS = {
    "sampling": {"data": {"sampling": "balanced"}},
    "weights": {"optim": {"class_weights": "balanced"}},
    "adjustment": {"optim": {"logit_adjustment": 1.0}},
}
LABELS = np.array([0] * 12 + [1] * 9 + [2] * 3)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def skewed_data(tiny_data, tmp_path_factory) -> Path:
    """Training images 12, 12 and 3."""
    root = tmp_path_factory.mktemp("skewed") / "data"
    shutil.copytree(tiny_data, root)
    for path in sorted((root / "train" / "red_checks").iterdir())[3:]:
        path.unlink()
    return root


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


# ------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("way", [{}, {"class_weights": "balanced"}, {"logit_adjustment": 0.7}])
def test_the_loss_is_the_formula(way: dict, label_smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(10, 3)), rng.integers(0, 3, 10)
    shares = np.bincount(LABELS) / len(LABELS)
    shifted = logits + way.get("logit_adjustment", 0.0) * np.log(shares)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    targets = (1 - label_smoothing) * np.eye(3)[labels] + label_smoothing / 3
    weights = 1 / (3 * shares[labels]) if "class_weights" in way else np.ones(10)
    expected = (weights * -(targets * log_p).sum(axis=1)).mean()
    optim = OptimConfig(label_smoothing=label_smoothing, **way)
    loss = TrainingLoss.of(optim, LABELS, num_classes=3, device=CPU)
    assert float(loss(torch.from_numpy(logits), torch.from_numpy(labels))) == pytest.approx(expected, rel=1e-6)


def test_the_weights_have_mean_one_over_the_training_images() -> None:
    loss = TrainingLoss.of(OptimConfig(class_weights="balanced"), LABELS, num_classes=3, device=CPU)
    assert float(loss.weights[LABELS].mean()) == pytest.approx(1.0)
    assert float(loss.weights[0] / loss.weights[2]) == pytest.approx(3 / 12)


def test_the_mean_of_the_parts_of_a_batch_is_the_mean_of_the_batch() -> None:
    logits, labels = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), torch.from_numpy(LABELS)
    loss = TrainingLoss.of(OptimConfig(class_weights="balanced"), LABELS, num_classes=3, device=CPU)
    parts = [loss(logits[rows], labels[rows]) for rows in (slice(0, 12), slice(12, 24))]
    assert float(sum(parts) / 2) == pytest.approx(float(loss(logits, labels)), rel=1e-6)
    # torch's own weighted mean divides by the weights of the part, and is another loss in every split
    parts = (slice(0, 12), slice(12, 24))
    theirs = [F.cross_entropy(logits[rows], labels[rows], weight=loss.weights) for rows in parts]
    assert float(sum(theirs) / 2) != pytest.approx(
        float(F.cross_entropy(logits, labels, weight=loss.weights)), rel=1e-3
    )


def test_by_default_it_is_cross_entropy_to_the_bit() -> None:
    loss = TrainingLoss.of(OptimConfig(), LABELS, num_classes=3, device=CPU)
    for seed in range(20):
        logits = torch.randn(24, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(loss(logits, torch.from_numpy(LABELS)), F.cross_entropy(logits, torch.from_numpy(LABELS)))


@pytest.mark.parametrize("pair", list(combinations(WAYS.values(), 2)))
def test_two_methods_at_once_are_refused(pair: tuple[dict, dict]) -> None:
    data, optim = ({key: value for way in pair for key, value in way.get(name, {}).items()} for name in WAYS_OF)
    with pytest.raises(InputError) as caught:
        RunConfig(data=DataConfig(**data), optim=OptimConfig(**optim))
    for key in (*(f"data.{name}" for name in data), *(f"optim.{name}" for name in optim)):
        assert key in str(caught.value)


WAYS_OF = ("data", "optim")

# ------------------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bank")


def unaugmented(root: Path, out: Path, way: dict) -> RunConfig:
    data = {"min_crop_scale": 1.0, "hflip": False, **way.get("data", {})}
    optim = {"backbone_lr": None, **way.get("optim", {})}
    return small(root, out, strategy="frozen_head", data=data, optim=optim)


@pytest.fixture(scope="module")
def plain_losses(skewed_data, tmp_path_factory) -> list[float]:
    """Of a run that does nothing for rare classes."""
    return losses(run(unaugmented(skewed_data, tmp_path_factory.mktemp("plain") / "run", {})))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_loop_and_minibatches_on_the_bank_have_the_same_losses(
    way, plain_losses, bank, skewed_data, tmp_path
) -> None:
    config = unaugmented(skewed_data, tmp_path / "loop", WAYS[way])
    loop = losses(run(config))
    on_bank = replace(
        config,
        out=str(tmp_path / "bank_run"),
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(solver="sgd"),
        runtime=replace(config.runtime, bank=str(bank)),
    )
    assert losses(run(on_bank)) == pytest.approx(loop, abs=1e-5)
    assert len(loop) == 7  # 27 images, 2 epochs, batch 8: as without
    assert plain_losses != pytest.approx(loop, abs=1e-3)


@pytest.mark.slow
def test_balanced_sampling_resumed_in_the_middle_ends_with_the_same_bits(skewed_data, tmp_path) -> None:
    config = small(
        skewed_data, tmp_path / "run", data={"sampling": "balanced"}, train={"checkpoint_steps": 3, "epochs": 3}
    )
    whole = run(config)
    first = (whole / "model.safetensors").read_bytes()
    shutil.rmtree(whole / "checkpoints" / "step_000009")
    (whole / "summary.json").unlink()
    expected = losses(whole)
    run(replace(config, train=replace(config.train, resume="auto")))
    assert (whole / "model.safetensors").read_bytes() == first
    assert losses(whole) == expected
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step_000006", "step_000009"]


# ------------------------------------------------------------------------------------------------- the exact head


@pytest.fixture(scope="module")
def drawn() -> tuple[Manifest, BankFeatures]:
    """512 features of 120 and 12 images that overlap in the 4 of them that are not 0."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [120, 12])
    train = np.zeros((132, 512), dtype=np.float32)
    train[:, :4] = rng.normal(size=(132, 4))
    train[:, 0] += 1.5 * labels
    source = ClassFolders("nowhere")
    samples = Samples.of(
        [Sample(f"{i}", f"{i}.png", f"{i}", "train", "ab"[k]) for i, k in enumerate(labels)], [], source
    )
    features = BankFeatures(
        train=train,
        train_labels=labels,
        owners=samples.column("sha256"),
        plain=np.ones(132, dtype=bool),
        val=train[::6],
        val_labels=labels[::6],
        extraction=Extraction(0, 0, 0.0),
        form="",
        folder=Path(),
    )
    return Manifest(source, ("a", "b"), samples, ()), features


def solved(drawn: tuple[Manifest, BankFeatures], *, l2: float | None = 3.0, solver: str = "lbfgs", **sections: dict):
    config = RunConfig(
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(l2=l2, solver=solver, steps=50),
        data=DataConfig(**sections.get("data", {})),
        optim=OptimConfig(**sections.get("optim", {})),
    )
    return fit_head(start_accelerator(config.runtime), config, *drawn)


def test_the_exact_head_under_logit_adjustment_is_the_optimum_of_the_loss_with_offsets(drawn) -> None:
    _, features = drawn
    head = solved(drawn, optim={"logit_adjustment": 1.5}).head
    rows, labels = torch.from_numpy(features.train).double(), torch.from_numpy(features.train_labels)
    weight, bias = (torch.tensor(value, requires_grad=True) for value in (head.weight, head.bias))
    offsets = 1.5 * torch.log(torch.tensor([120 / 132, 12 / 132], dtype=torch.float64))
    penalty = 3.0 / (2 * 132) * ((weight * rows.std(dim=0, unbiased=False)) ** 2).sum()
    (F.cross_entropy(rows @ weight.T + bias + offsets, labels) + penalty).backward()
    assert float(weight.grad.abs().max()) < 1e-6
    assert float(bias.grad.abs().max()) < 1e-6
    # so it is the post-hoc adjustment too: the plain head, the offsets taken from its intercept
    plain = solved(drawn).head
    assert np.abs(head.weight - plain.weight).max() < 1e-7
    assert np.abs(head.bias - (plain.bias - offsets.numpy())).max() < 1e-6


def test_the_strength_that_is_chosen_does_not_depend_on_the_adjustment(drawn) -> None:
    plain, adjusted = solved(drawn, l2=None), solved(drawn, l2=None, optim={"logit_adjustment": 1.0})
    assert plain.details["l2"] == adjusted.details["l2"]
    assert [line.get("cv_loss") for line in plain.lines] == [line.get("cv_loss") for line in adjusted.lines]


@pytest.mark.parametrize("solver", ["lbfgs", "full_batch"])
def test_where_nothing_is_drawn_balanced_sampling_is_the_weighted_loss(solver, drawn) -> None:
    drawn_evenly, weighted, plain = (
        solved(drawn, solver=solver, **sections) for sections in (WAYS["sampling"], WAYS["weights"], {})
    )
    assert np.array_equal(drawn_evenly.head.weight, weighted.head.weight)
    assert drawn_evenly.details["class_weights"] == "balanced"
    assert not np.allclose(weighted.head.bias, plain.head.bias)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", ["lbfgs", "sgd", "full_batch"])
def test_each_method_raises_the_recall_of_the_rare_class(way, solver, drawn) -> None:
    _, features = drawn
    rare = features.train[features.train_labels == 1]
    recall = [
        (solved(drawn, solver=solver, **sections).head.logits(rare).argmax(axis=1) == 1).mean()
        for sections in (
            {"optim": {"lr": 0.05}},
            {"optim": {"lr": 0.05, **WAYS[way].get("optim", {})}, "data": WAYS[way].get("data", {})},
        )
    ]
    assert recall[1] > recall[0]


@pytest.mark.slow
def test_an_exact_head_does_not_list_keys_that_it_uses_as_unused(bank, skewed_data, tmp_path, capsys) -> None:
    config = small(
        skewed_data, tmp_path / "run", strategy="frozen_head", optim={"logit_adjustment": 1.0, "label_smoothing": 0.1}
    )
    config = replace(
        config,
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(l2=1.0),
        runtime=replace(config.runtime, bank=str(bank)),
    )
    folder = run(config)
    printed = capsys.readouterr().out
    assert "optim.label_smoothing" in printed
    assert "logit_adjustment" not in printed
    assert json.loads((folder / "summary.json").read_text())["probe"]["logit_adjustment"] == 1.0
    plain = run(replace(config, out=str(tmp_path / "plain"), optim=replace(config.optim, logit_adjustment=0.0)))
    biases = [load_file(path / "model.safetensors")["fc.bias"] for path in (folder, plain)]
    moved = biases[0] - biases[1] + torch.log(torch.tensor([12 / 27, 12 / 27, 3 / 27]))
    assert torch.allclose(moved, moved.mean().expand(3), atol=1e-4)  # an offset of all classes changes nothing
