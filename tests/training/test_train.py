"""The loop: golden losses, a plain PyTorch loop beside it, frozen is frozen, stop and resume."""

import json
import math
import platform
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import GOLDEN
from support.runs import epochs, exit_code, lines, losses, small, steps, stopped_at, without_times
from torch import nn
from torchvision.models import resnet18

from headstart import InputError
from headstart.backbones import RESNET18
from headstart.cli.train import parse_train
from headstart.config import DataConfig, RunConfig
from headstart.config_io import to_yaml
from headstart.data import loaders
from headstart.data.loaders import as_dataset, collate, train_loader
from headstart.data.manifest import build_manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data.transforms import Preprocess, train_transform
from headstart.model.build import build_model
from headstart.model.model_file import load_model
from headstart.model.weights import load_weights
from headstart.training import checkpoint, image_data, loop, train_network
from headstart.training.run import run

# torch resizes uint8 images in integers where the processor has AVX2 and in floats elsewhere, so pixels may differ by
# 1; Pillow, which prepares images that are not cropped at random, computes the same everywhere
NO_RANDOM_CROP = {"min_crop_scale": 1.0}


@pytest.fixture(scope="module")
def fine_tuned(tiny_data, tmp_path_factory):
    return run(small(tiny_data, tmp_path_factory.mktemp("runs") / "fine_tuned", data=NO_RANDOM_CROP))


@pytest.fixture(scope="module")
def frozen(tiny_data, tmp_path_factory):
    """With random crops."""
    return run(small(tiny_data, tmp_path_factory.mktemp("runs") / "frozen", strategy="frozen_head"))


def tolerance(step: int) -> float:
    """Relative difference of a loss between processors.

    Other kernels add in another order: 1e-7, the resolution of float32. Each step of fine-tuning can double a
    difference, as BatchNorm divides by the spread of a small batch. Largest differences over kernels of oneDNN for
    AVX2, AVX and SSE 4.1, and of torch for AVX2 and without: 1e-7 at step 2, 5e-7 at step 6, 1e-5 at step 7, 2e-5 after
    step 9. A learning rate that is 1% higher changes step 2 by 2e-4 and step 3 by 1e-3, a momentum of 0.89 step 3 by
    2e-4, no normalisation step 2 by 3e-3.
    """
    return 1e-5 * 2 ** (step - 1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fine_tune", "frozen_head"])
def test_losses_are_the_golden_ones(strategy, fine_tuned, tiny_data, tmp_path, request):
    """Equal bits are promised on one processor only."""
    folder = fine_tuned
    if strategy == "frozen_head":
        folder = run(small(tiny_data, tmp_path / "run", strategy="frozen_head", data=NO_RANDOM_CROP))
    header = f"# {platform.machine()} torch {torch.__version__.split('+')[0]}"
    rows = [f"{row['step']} {row['loss']:.9f} {row['lr']['head_decay']:.9f}" for row in steps(folder)]
    rows += [f"epoch {row['step']} {row['val_loss']:.9f} {row['val_correct']}" for row in epochs(folder)]
    file = GOLDEN / f"{strategy}_cpu.txt"
    if request.config.getoption("--update-golden"):
        file.write_text("\n".join([header, *rows]) + "\n")
    golden = file.read_text().splitlines()[1:]
    assert len(golden) == len(rows) == 9 + 2
    for expected, found in zip(golden, rows, strict=True):
        *name, loss, exact = found.split()
        *expected_name, expected_loss, expected_exact = expected.split()
        assert name == expected_name
        assert float(loss) == pytest.approx(float(expected_loss), rel=tolerance(int(name[-1]))), found
        assert exact == expected_exact, found  # a rate, or the number of correct predictions


@pytest.mark.slow
def test_the_first_loss_is_that_of_guessing(fine_tuned, frozen):
    for folder in (fine_tuned, frozen):
        assert steps(folder)[0]["loss"] == pytest.approx(math.log(3), abs=1e-6)


@pytest.mark.slow
def test_fine_tuning_learns_the_training_images(tiny_data, tmp_path):
    folder = run(small(tiny_data, tmp_path / "run", train={"epochs": 5}, data={**NO_RANDOM_CROP, "hflip": False}))
    assert max(row["train_accuracy"] for row in epochs(folder)) > 0.95


@pytest.fixture
def decoded(monkeypatch):
    """Grows by one for each image that a run decodes after its scan."""
    seen = []
    original = loaders.TransformedImages.decoded
    monkeypatch.setattr(
        loaders.TransformedImages, "decoded", lambda self, *args: seen.append(1) or original(self, *args)
    )
    return seen


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_file_and_decodes_each_image_once(tiny_data, tmp_path, frozen, decoded):
    """Also with train.resume auto, where there is nothing to continue."""
    again = run(small(tiny_data, tmp_path / "again", strategy="frozen_head", train={"resume": "auto"}))
    assert len(decoded) <= 36 + 15  # once each, here or in the check at the start
    assert (again / "model.safetensors").read_bytes() == (frozen / "model.safetensors").read_bytes()
    assert without_times(lines(again)) == without_times(lines(frozen))


@pytest.mark.slow
def test_without_the_cache_each_image_is_decoded_again_and_that_changes_no_bit(tiny_data, tmp_path, frozen, decoded):
    off = run(small(tiny_data, tmp_path / "off", strategy="frozen_head", data={"cache": "off"}))
    assert len(decoded) == 2 * 36 + 3 * 15 + 12  # epochs, evaluations, the grid of training images
    assert (off / "model.safetensors").read_bytes() == (frozen / "model.safetensors").read_bytes()
    assert without_times(lines(off)) == without_times(lines(frozen))


@pytest.fixture
def a_few_photographs(ants_and_bees, tmp_path):
    """12 + 2 ants and bees, at their own sizes."""
    for split, count in (("train", 6), ("val", 1)):
        for label in ("ants", "bees"):
            folder = tmp_path / "photographs" / split / label
            folder.mkdir(parents=True)
            for path in sorted((ants_and_bees / split / label).glob("*.jpg"))[:count]:
                (folder / path.name).symlink_to(path.resolve())
    return tmp_path / "photographs"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fine_tune", "frozen_head"])
@pytest.mark.parametrize(
    ("images", "size", "batch_size", "num_steps"), [("tiny_data", 32, 8, 9), ("a_few_photographs", 224, 4, 6)]
)
def test_losses_equal_those_of_a_plain_pytorch_loop_on_the_same_batches(
    images, size, batch_size, num_steps, strategy, request, tmp_path
):
    root = request.getfixturevalue(images)
    config = small(
        root,
        tmp_path / "run",
        strategy=strategy,
        train={"epochs": 2, "batch_size": batch_size},
        data={"image_size": size},
        model={"head_init": "normal"},
        optim={"lr": 0.001, "backbone_lr": None, "schedule": "step", "step_epochs": 1},
    )
    ours = losses(run(config))

    # the plain loop
    manifest = build_manifest(ClassFolders(str(root)), DataConfig(), seed=0)
    samples = manifest.of("train")
    spec = Preprocess.of(config.data, RESNET18)
    loader = train_loader(
        as_dataset(samples, manifest.classes),
        manifest.source,
        train_transform(config.data, spec),
        batch_size=batch_size,
        accumulation=1,
        num_steps=len(ours),
        start_step=0,
        seed=0,
        num_workers=0,
    )
    count = len(manifest.classes)
    model = resnet18(num_classes=count).to(memory_format=torch.channels_last)
    start = build_model(RESNET18, count, tensors=load_weights("bundled", RESNET18).tensors, head_init="normal", seed=0)
    model.load_state_dict(start.state_dict())
    parameters = model.parameters() if strategy == "fine_tune" else model.fc.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.001, momentum=0.9)
    steps_per_epoch = len(samples) / batch_size
    plain = []
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    for step, batch in enumerate(loader):
        model.train()
        if strategy == "frozen_head":
            model.eval()
        for group in optimizer.param_groups:
            group["lr"] = 0.001 * 0.1 ** int(step / steps_per_epoch)
        loss = nn.functional.cross_entropy(
            model(((batch["pixels"] / 255 - mean) / std).contiguous(memory_format=torch.channels_last)), batch["label"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plain.append(loss.item())
    assert len(ours) == len(plain) == num_steps
    assert ours == pytest.approx(plain, abs=1e-6)


def test_a_frozen_backbone_is_the_same_to_the_bit(frozen):
    model, _ = load_model(frozen / "model.safetensors")
    before = load_weights("bundled", RESNET18).tensors
    after = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    assert after.keys() == before.keys()
    assert any("running_mean" in name for name in after)
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert model.fc.weight.abs().max() > 0


def test_without_pinning_the_frozen_backbone_would_move(tiny_data):
    """The test above can fail: model.train() alone lets the statistics run away."""
    model = build_model(RESNET18, 3, tensors=load_weights("bundled", RESNET18).tensors, head_init="zero", seed=0)
    model.requires_grad_(False)
    before = model.bn1.running_mean.clone()
    model.train()
    model(torch.randn(4, 3, 32, 32))
    assert not torch.equal(before, model.bn1.running_mean)


def test_frozen_parameters_have_no_gradient(tiny_data):
    from headstart.config import OptimConfig, StrategyConfig
    from headstart.recipe.optimizer import plan

    model = build_model(RESNET18, 3, tensors=None, head_init="normal", seed=0)
    model.keep_in_eval(plan(model, StrategyConfig(name="frozen_head"), OptimConfig()).eval_modules)
    model.train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["fc.weight", "fc.bias"]


@pytest.mark.slow
def test_fine_tuning_moves_every_tensor(fine_tuned):
    model, _ = load_model(fine_tuned / "model.safetensors")
    before = load_weights("bundled", RESNET18).tensors
    moved = [
        name for name, value in model.state_dict().items() if name in before and not torch.equal(value, before[name])
    ]
    assert sorted(moved) == sorted(before)


@pytest.mark.slow
def test_frozen_statistics_in_fine_tune_stay_while_the_weights_move(tiny_data, tmp_path):
    config = small(tiny_data, tmp_path / "run", train={"epochs": 1})
    config = replace(config, strategy=replace(config.strategy, batchnorm="freeze"))
    model, _ = load_model(run(config) / "model.safetensors")
    before = load_weights("bundled", RESNET18).tensors
    for name, value in model.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.conv1.weight, before["conv1.weight"])


@pytest.mark.slow
def test_the_learning_rate_follows_the_schedule_once_per_update_and_the_written_config_is_valid(tiny_data, tmp_path):
    config = small(
        tiny_data,
        tmp_path / "run",
        strategy="frozen_head",
        optim={"warmup_epochs": 0.5, "lr": 1e-3},
        train={"accumulation": 2},
        runtime={"mixed_precision": "auto"},
    )
    folder = run(config)
    rates = [row["lr"]["head_decay"] for row in steps(folder)]
    assert len(rates) == 9  # 36 images, 2 epochs, batch 8
    warmup = 2
    expected = [1e-3 / 3, 2e-3 / 3] + [0.5e-3 * (1 + math.cos(math.pi * k / (9 - warmup))) for k in range(7)]
    assert rates == pytest.approx(expected, rel=1e-9)

    written = parse_train(["--config", str(folder / "config.yaml")])
    assert isinstance(written, RunConfig)
    assert written.runtime.mixed_precision in ("no", "bf16", "fp16")  # what was chosen
    assert written.data.resize_size == round(32 * 256 / 224)
    assert replace(written, runtime=config.runtime, data=config.data) == config


@pytest.mark.slow
def test_accumulated_gradients_give_the_losses_of_the_whole_batch(tiny_data, tmp_path, frozen):
    in_parts = run(small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"accumulation": 4}))
    assert losses(in_parts) == pytest.approx(losses(frozen), rel=1e-5)


@pytest.mark.slow
def test_workers_do_not_change_what_is_trained_on(tiny_data, tmp_path, frozen):
    folder = run(small(tiny_data, tmp_path / "run", strategy="frozen_head", data={"num_workers": 2}))
    assert without_times(lines(folder)) == without_times(lines(frozen))


@pytest.mark.slow
def test_another_seed_gives_another_order(tiny_data, tmp_path, frozen):
    folder = run(replace(small(tiny_data, tmp_path / "run", strategy="frozen_head"), seed=1))
    assert losses(folder)[1:] != losses(frozen)[1:]


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_the_rate(tiny_data, tmp_path):
    config = small(tiny_data, tmp_path / "run", optim={"lr": 1e30, "backbone_lr": 1e30})
    with pytest.raises(InputError, match=r"loss .*(nan|inf) .*step \d.*optim\.lr \(now 1e\+30\)"):
        run(config)


@pytest.mark.slow
def test_the_best_epoch_by_accuracy_then_loss_is_the_one_kept(fine_tuned):
    rows = epochs(fine_tuned)
    best = max(rows, key=lambda row: (row["val_correct"], -row["val_loss"]))
    summary = json.loads((fine_tuned / "summary.json").read_text())
    assert summary["best_epoch"] == best["epoch"]
    assert summary["val"]["correct"] == best["val_correct"]
    assert summary["val"]["loss"] == best["val_loss"]


@pytest.mark.slow
def test_a_stopped_run_saves_exits_143_and_continues_to_the_same_bits(tiny_data, tmp_path, frozen):
    """Stopped in training, in the evaluation of the first epoch, and in the last evaluation, one after the other."""
    folder, file = tmp_path / "run", tmp_path / "config.yaml"
    config = small(tiny_data, folder, strategy="frozen_head", data={"cache": "off"}, train={"resume": "auto"})
    file.write_text(to_yaml(config))
    # after the 12 images of train_batch.png: two steps of 8, and some of the third; then by the lines of metrics.jsonl,
    # which is read once and opened for each line: that of step 5 comes before the evaluation, that of epoch 2 before
    # the last one
    for nth, path, at, num_epochs in (
        (30, tiny_data, r"step [1-3] of 9", 0),
        (2, folder / "metrics.jsonl", "step 5 of 9", 0),
        (7, folder / "metrics.jsonl", "step 9 of 9", 2),
    ):
        stopped = stopped_at(nth, path, file)
        assert stopped.returncode == 143, stopped.stderr
        assert stopped.stderr.count("\n") == 1
        assert re.search(rf"{at}.*: headstart resume {folder}$", stopped.stderr)
        assert len(epochs(folder)) == num_epochs
        assert not (folder / "summary.json").exists()
    assert exit_code("resume", folder) == 0
    assert (folder / "model.safetensors").read_bytes() == (frozen / "model.safetensors").read_bytes()
    assert without_times(lines(folder)) == without_times(lines(frozen))


@pytest.fixture(scope="module")
def saved(tiny_data, tmp_path_factory):
    """A finished run with two checkpoints on the way, and its configuration."""
    config = small(
        tiny_data, tmp_path_factory.mktemp("runs") / "saved", train={"checkpoint_steps": 3}, data=NO_RANDOM_CROP
    )
    run(config)
    return config


@pytest.fixture
def interrupted(saved, tmp_path):
    """A copy of it as if it had been killed at the end; continues with train.resume auto."""
    folder = tmp_path / "run"
    shutil.copytree(saved.out, folder)
    (folder / "summary.json").unlink()
    return replace(saved, out=str(folder), train=replace(saved.train, resume="auto"))


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def damage_flip(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


@pytest.mark.slow
def test_checkpoints_change_nothing_and_two_are_kept(saved, fine_tuned):
    folder = Path(saved.out)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_000003", "step_000006"]
    assert (folder / "model.safetensors").read_bytes() == (fine_tuned / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_resumed_from_a_checkpoint_a_run_ends_with_the_same_bits(interrupted, fine_tuned, capsys):
    folder = Path(interrupted.out)
    (folder / "model.safetensors").write_bytes(b"of a later epoch, cut short")
    run(interrupted)
    assert "step 6 of 9" in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == (fine_tuned / "model.safetensors").read_bytes()
    assert without_times(lines(folder)) == without_times(lines(fine_tuned))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_found(damage, name, interrupted, caplog):
    folder = Path(interrupted.out) / "checkpoints"
    damage(folder / "step_000006" / name)
    assert checkpoint.find("auto", folder) == folder / "step_000003"
    (reported,) = caplog.messages
    assert "step_000006" in reported
    with pytest.raises(InputError, match="step_000006"):
        checkpoint.find(str(folder / "step_000006"), folder)


@pytest.mark.slow
def test_another_step_in_the_state_is_noticed(interrupted, caplog):
    folder = Path(interrupted.out) / "checkpoints"
    state = folder / "step_000006" / "state.json"
    state.write_text(state.read_text().replace('"step": 6', '"step": 7'))
    assert checkpoint.find("auto", folder) == folder / "step_000003"
    assert "state.json" in caplog.messages[0]


@pytest.mark.slow
def test_a_checkpoint_that_is_written_again_is_never_missing(interrupted, capsys):
    """Killed between the two renames: the older one of the same step is found, and goes with the next that is
    written. What changed and may change is printed."""
    folder = Path(interrupted.out) / "checkpoints"
    shutil.rmtree(folder / "step_000003")
    (folder / "step_000006").rename(folder / "step_000006.old")
    assert checkpoint.find("auto", folder) == folder / "step_000006.old"
    run(replace(interrupted, train=replace(interrupted.train, accumulation=2, checkpoint_steps=8)))
    assert [path.name for path in folder.iterdir()] == ["step_000008"]
    assert "train.accumulation 2 (was 1), train.checkpoint_steps 8 (was 3)" in capsys.readouterr().out


@pytest.mark.slow
def test_from_an_older_checkpoint_the_later_ones_go(interrupted, fine_tuned):
    folder = Path(interrupted.out)
    older = replace(interrupted.train, resume=str(folder / "checkpoints/step_000003"), checkpoint_steps=0)
    run(replace(interrupted, train=older))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000003"]
    assert without_times(lines(folder)) == without_times(lines(fine_tuned))


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved(interrupted, monkeypatch):
    """A gradient that overflows is seen in the loss of the next step; a checkpoint in between would be the last one
    for ever."""
    from accelerate.optimizer import AcceleratedOptimizer

    step = AcceleratedOptimizer.step

    def overflowing(self, closure=None):
        step(self, closure)
        self.param_groups[-1]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(AcceleratedOptimizer, "step", overflowing)
    with pytest.raises(InputError, match=r"weight .*step 7.*optim\.lr"):
        run(replace(interrupted, train=replace(interrupted.train, checkpoint_steps=1)))
    folder = Path(interrupted.out) / "checkpoints"
    assert checkpoint.find("auto", folder) == folder / "step_000006"


@pytest.mark.slow
def test_a_rate_is_a_function_of_the_step_also_after_one_that_the_scaler_skipped(
    frozen, tiny_data, tmp_path, monkeypatch
):
    from accelerate.optimizer import AcceleratedOptimizer

    step, skipped = AcceleratedOptimizer.step, []

    def skipping(self, closure=None):
        skipped.append(len(skipped) < 3)  # as GradScaler does when the first gradients overflow
        if not skipped[-1]:
            step(self, closure)

    monkeypatch.setattr(AcceleratedOptimizer, "step", skipping)
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: bool(skipped) and skipped[-1]))
    folder = run(small(tiny_data, tmp_path / "run", strategy="frozen_head"))
    assert sum(skipped) == 3
    assert [row["lr"] for row in steps(folder)] == [row["lr"] for row in steps(frozen)]


@pytest.mark.slow
def test_without_a_whole_checkpoint_nothing_is_started_anew_by_itself(interrupted):
    for path in (Path(interrupted.out) / "checkpoints").iterdir():
        (path / "optimizer.safetensors").unlink()
    with pytest.raises(InputError, match=re.escape(str(Path(interrupted.out) / "checkpoints"))):
        run(interrupted)


@pytest.mark.slow
def test_from_the_one_before_the_run_ends_with_the_same_bits(interrupted, fine_tuned, capsys):
    """Half a checkpoint is invisible, and goes with the next that is written."""
    folder = Path(interrupted.out)
    shutil.copytree(folder / "checkpoints" / "step_000006", folder / "checkpoints" / "step_000008.tmp")
    damage_flip(folder / "checkpoints" / "step_000006" / "model.safetensors")
    run(interrupted)
    printed = capsys.readouterr().out
    assert "step_000006" in printed  # the damaged one
    assert "step 3 of 9" in printed
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_000003", "step_000006"]
    assert (folder / "model.safetensors").read_bytes() == (fine_tuned / "model.safetensors").read_bytes()
    assert without_times(lines(folder)) == without_times(lines(fine_tuned))


@pytest.mark.slow
def test_a_half_written_checkpoint_of_a_step_is_not_found(interrupted):
    folder = Path(interrupted.out) / "checkpoints"
    (folder / "step_000006").rename(folder / "step_000006.tmp")
    assert checkpoint.find("auto", folder) == folder / "step_000003"


@pytest.mark.slow
def test_the_default_optimizer_continues_to_the_same_bits(tiny_data, tmp_path):
    adamw = {"name": "adamw", "lr": 0.01, "backbone_lr": 0.0001}
    train = {"epochs": 1, "checkpoint_steps": 2, "resume": "auto"}
    config = small(tiny_data, tmp_path / "run", optim=adamw, train=train)
    folder = run(config)
    straight, model = lines(folder), (folder / "model.safetensors").read_bytes()
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step_000004")
    run(config)
    assert without_times(lines(folder)) == without_times(straight)
    assert (folder / "model.safetensors").read_bytes() == model


@pytest.mark.slow
def test_another_recipe_is_refused_with_every_key_that_differs(interrupted):
    changed = replace(
        interrupted,
        optim=replace(interrupted.optim, lr=0.5),
        data=replace(interrupted.data, hflip=False),
        runtime=replace(interrupted.runtime, threads=2),
    )
    with pytest.raises(InputError) as caught:
        run(changed)
    said = str(caught.value)
    assert "data.hflip False (was True), optim.lr 0.5 (was 0.02)" in said
    assert "runtime.threads" not in said
    assert "out, runtime, data.root" in said  # what may change


@pytest.mark.slow
def test_other_images_are_refused_by_name(interrupted, tiny_data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)
    train = root / "train" / "red_checks"
    first, second, third = sorted(train.iterdir())[:3]
    first.unlink()
    second.rename(train / "other.jpg")
    third.write_bytes(first.read_bytes() if first.exists() else sorted(train.iterdir())[-1].read_bytes())
    with pytest.raises(InputError) as caught:
        run(replace(interrupted, data=replace(interrupted.data, root=str(root))))
    for part in (f"{first.name} (gone)", f"{second.name} (gone)", "other.jpg (new)", f"{third.name} (changed)"):
        assert part in str(caught.value)


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_it_starts_again(tiny_data, tmp_path, frozen):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "manifest.parquet", "metrics.jsonl", "model.safetensors"):
        shutil.copy(frozen / name, folder / name)
    config = small(tiny_data, folder, strategy="frozen_head")
    with pytest.raises(InputError, match=re.escape(str(folder))):
        run(config)
    run(replace(config, train=replace(config.train, resume="auto")))
    assert (folder / "model.safetensors").read_bytes() == (frozen / "model.safetensors").read_bytes()
    assert without_times(lines(folder)) == without_times(lines(frozen))


def test_collate_stacks_and_keeps_the_types():
    item = {"pixels": torch.zeros(3, 4, 4, dtype=torch.uint8), "label": 1, "index": 5}
    batch = collate([item, item])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "pixels": ((2, 3, 4, 4), torch.uint8),
        "label": ((2,), torch.int64),
        "index": ((2,), torch.int64),
    }


@pytest.mark.slow
def test_accelerates_own_way_to_resume_would_not_pass(tiny_data, tmp_path, monkeypatch):
    """The tests above can fail: with a shuffling loader whose order comes from the global random state, as it was
    saved at the checkpoint, and skip_first_batches, the first step after resuming sees other images."""
    from accelerate import skip_first_batches
    from torch.utils.data import DataLoader, RandomSampler

    def shuffled(rows, source, transform, *, batch_size, num_steps, start_step, seed, num_workers, accumulation, **_):
        transforms = loaders.TransformedImages(rows, source, transform, seed=seed)
        sampler = RandomSampler(transforms, num_samples=num_steps * batch_size)
        plain = DataLoader(
            [transforms[(index, 0)] for index in range(len(transforms))],
            sampler=sampler,
            batch_size=batch_size,
            collate_fn=collate,
        )
        if not start_step:
            return plain
        rest = skip_first_batches(plain, start_step)
        rest.batch_sampler.batch_size = batch_size  # without which prepare refuses it
        return rest

    monkeypatch.setattr(image_data, "train_loader", shuffled)
    monkeypatch.setattr(train_network, "draw_train_batch", lambda *_: None)
    torch.manual_seed(7)
    config = small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"checkpoint_steps": 3, "resume": "auto"})
    straight = run(config)
    after_the_draw = torch.get_rng_state()
    (straight / "summary.json").unlink()
    torch.set_rng_state(after_the_draw)  # what accelerator.load_state restores
    before = losses(straight)
    run(config)
    after = losses(straight)
    assert after[:6] == before[:6]
    assert after[6] != pytest.approx(before[6], rel=1e-3)


@pytest.mark.slow
def test_a_finished_run_is_not_taken_for_another_recipe(fine_tuned, tiny_data):
    other = small(tiny_data, fine_tuned, train={"resume": "auto"}, optim={"lr": 0.5}, data=NO_RANDOM_CROP)
    with pytest.raises(InputError, match=rf"{fine_tuned}.*optim\.lr 0\.5 \(was 0\.02\)"):
        run(other)


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_has_nothing_to_do(fine_tuned, tiny_data, capsys):
    before = {path: path.stat().st_mtime_ns for path in fine_tuned.rglob("*")}
    assert run(small(tiny_data, fine_tuned, train={"resume": "auto"}, data=NO_RANDOM_CROP)) == fine_tuned
    assert str(fine_tuned) in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in fine_tuned.rglob("*")} == before


@pytest.mark.slow
def test_losses_are_written_every_few_seconds_too(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are written together share the time that they took."""
    monkeypatch.setattr(loop, "FLUSH_S", 0.0)
    rows = steps(run(small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"epochs": 1})))
    assert len({row["time_s"] for row in rows}) == len(rows) == 5
