"""From arguments and YAML files to a RunConfig."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from headstart.cli.main import main
from headstart.cli.train import parse_train
from headstart.config import DataConfig, ModelConfig, OptimConfig, RunConfig, RuntimeConfig, StrategyConfig, TrainConfig
from headstart.config_io import shipped_configs, to_yaml
from headstart.errors import InputError


def leaves(config: Any = None, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    config = RunConfig() if config is None else config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


KEYS = sorted(leaves())
SECTIONS = sorted({key.split(".")[0] for key in KEYS if "." in key})


def complaint(*argv: str) -> str:
    """The message about these arguments, checked to be one line."""
    with pytest.raises(InputError) as caught:
        parse_train(argv)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# ------------------------------------------------------------------------------------------------- round trip

floats = st.floats(min_value=1e-9, max_value=1e6)
shares = st.floats(min_value=1e-6, max_value=0.999)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
    st.sampled_from(["1", "1e3", "null", "true", "no", "a: b", "[x]", "{y: 1}", "~", "- a", "# a", "ä ö/ü.jpg", " a "]),
)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    image_size = draw(st.integers(32, 600))
    accumulation = draw(st.integers(1, 8))
    return RunConfig(
        out=draw(st.just("") | texts),
        seed=draw(st.integers(0, 2**63 - 1)),
        data=DataConfig(
            root=draw(st.just("") | texts),
            val_fraction=draw(shares),
            on_bad_file=draw(st.sampled_from(["refuse", "skip"])),
            image_size=image_size,
            resize_size=draw(st.none() | st.integers(image_size, 1000)),
            min_crop_scale=draw(shares | st.just(1.0)),
            hflip=draw(st.booleans()),
            vflip=draw(st.booleans()),
            num_workers=draw(st.none() | st.integers(0, 64)),
        ),
        model=ModelConfig(weights=draw(texts), head_init=draw(st.sampled_from(["zero", "normal"]))),
        strategy=StrategyConfig(
            name=draw(st.sampled_from(["fine_tune", "frozen_head"])),
            batchnorm=draw(st.sampled_from(["train", "freeze"])),
        ),
        optim=OptimConfig(
            name=draw(st.sampled_from(["sgd", "adamw"])),
            lr=draw(floats),
            backbone_lr=draw(st.none() | floats),
            momentum=draw(shares | st.just(0.0)),
            weight_decay=draw(floats | st.just(0.0)),
            schedule=draw(st.sampled_from(["constant", "cosine", "step"])),
            warmup_epochs=draw(floats | st.just(0.0)),
            step_epochs=draw(floats),
            step_gamma=draw(shares | st.just(1.0)),
            label_smoothing=draw(shares | st.just(0.0)),
            clip_norm=draw(st.none() | floats),
        ),
        train=TrainConfig(
            epochs=draw(st.integers(1, 10_000)),
            batch_size=accumulation * draw(st.integers(1, 1000)),
            accumulation=accumulation,
            eval_batch_size=draw(st.integers(1, 10_000)),
            resume=draw(st.sampled_from(["never", "auto"]) | texts),
            checkpoint_steps=draw(st.integers(0, 1000)),
        ),
        runtime=RuntimeConfig(
            mixed_precision=draw(st.sampled_from(["no", "bf16", "fp16", "auto"])),
            channels_last=draw(st.booleans()),
            cpu=draw(st.booleans()),
            threads=draw(st.none() | st.integers(1, 256)),
        ),
    )


def assert_is_read_back_equal(config: RunConfig, folder: Path) -> None:
    file = write(folder / "config.yaml", to_yaml(config))
    assert parse_train(["--config", file]) == config


@pytest.mark.slow
@given(config=configs())
@settings(max_examples=8)
@example(config=RunConfig())
@example(config=RunConfig(out="12e5", data=DataConfig(root="~")))
@example(config=RunConfig(data=DataConfig(root="#2 images")))
def test_a_written_configuration_is_read_back_equal(config: RunConfig, tmp_path: Path) -> None:
    assert_is_read_back_equal(config, tmp_path)


@pytest.mark.extended
@given(config=configs())
@settings(max_examples=150)
def test_many_written_configurations_are_read_back_equal(config: RunConfig, tmp_path: Path) -> None:
    assert_is_read_back_equal(config, tmp_path)


@given(config=configs())
@settings(max_examples=20)
def test_a_written_configuration_leaves_no_key_to_a_default(config: RunConfig) -> None:
    assert yaml.safe_load(to_yaml(config)) == dataclasses.asdict(config)


def test_no_arguments_give_the_defaults() -> None:
    assert parse_train([]) == RunConfig()


# ------------------------------------------------------------------------------------------------- misspellings


@st.composite
def misspellings(draw: st.DrawFn) -> tuple[str, str]:
    """(key, the key with one letter dropped, doubled, swapped, replaced or added)."""
    key = draw(st.sampled_from(KEYS))
    at = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    wrong = draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1 :],
                key[: at + 1] + key[at:],
                key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
                key[:at] + letter + key[at + 1 :],
                key[:at] + letter + key[at:],
            ]
        )
    )
    assume(wrong not in KEYS and wrong not in SECTIONS and wrong not in ("help", "config", "print_config", ""))
    return key, wrong


def num_edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (x != y)))
    return row[-1]


def assert_names_the_nearest(message: str, *, key: str, wrong: str) -> None:
    """Of keys that are equally near, any will do."""
    assert wrong in message
    suggestion = re.search(r"([\w.]+)\?", message)
    if len(key) < 5:  # of `out` and `seed` one letter is a lot
        return
    assert suggestion, f"{message!r} does not suggest {key}"
    assert num_edits(wrong, suggestion[1]) <= num_edits(wrong, key), f"{message!r}: {key} is nearer"


def assert_option_is_refused(key: str, wrong: str) -> None:
    assert_names_the_nearest(complaint(f"--{wrong}", "1"), key=key, wrong=wrong)


def assert_key_of_a_file_is_refused(key: str, wrong: str, folder: Path) -> None:
    section, _, leaf = wrong.rpartition(".")
    assume(leaf and "." not in section)
    file = write(folder / "wrong.yaml", yaml.safe_dump({section: {leaf: 1}} if section else {leaf: 1}))
    message = complaint("--config", file)
    assert file in message
    if section in ("", *SECTIONS):
        assert_names_the_nearest(message, key=key, wrong=wrong)
    else:
        assert_names_the_nearest(message, key=key.split(".")[0], wrong=section)


@pytest.mark.slow
@given(pair=misspellings())
@settings(max_examples=10)
@example(pair=("strategy.name", "strateg.name"))
def test_a_misspelt_option_never_parses_and_the_nearest_key_is_named(pair: tuple[str, str]) -> None:
    assert_option_is_refused(*pair)


@pytest.mark.slow
@given(pair=misspellings())
@settings(max_examples=8)
def test_a_misspelt_key_of_a_file_never_parses_and_the_nearest_key_is_named(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    assert_key_of_a_file_is_refused(*pair, tmp_path)


@pytest.mark.extended
@given(pair=misspellings())
@settings(max_examples=200)
def test_no_misspelt_key_parses_in_an_option_or_in_a_file(pair: tuple[str, str], tmp_path: Path) -> None:
    assert_option_is_refused(*pair)
    assert_key_of_a_file_is_refused(*pair, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--lr", "optim.lr"),
        ("--epochs", "train.epochs"),
        ("--batch_size", "train.batch_size"),
        ("--train.batchsize", "train.batch_size"),
        ("--optim.learning_rate", None),
        ("--train.lr", "optim.lr"),
        ("--strategy.nam", "strategy.name"),
        ("--seeds", "train.seeds"),
        ("--train.fold", "train.folds"),
    ],
)
def test_the_suggestion_for_a_likely_slip_is_the_key_that_was_meant(wrong: str, right: str | None) -> None:
    message = complaint(wrong, "1")
    if right:
        assert f" --{right}?" in message


def test_an_abbreviated_option_is_unknown() -> None:
    assert "--train.epoch" in complaint("--train.epoch", "3")


def test_an_argument_without_a_dash_is_named() -> None:
    assert "bees" in complaint("ants", "bees")


def test_a_section_given_as_an_option_suggests_one_of_its_keys() -> None:
    assert "train.epochs" in complaint("--train", "3")


def test_the_folder_may_be_named_in_three_ways() -> None:
    expected = parse_train(["--data.root", "photos"])
    assert parse_train(["photos"]) == expected
    assert parse_train(["--data", "photos"]) == expected
    assert parse_train(["photos", "--data", "photos"]) == expected
    assert all(name in complaint("photos", "--data", "other") for name in ("photos", "other"))


def test_hyphens_stand_for_underscores_in_options_and_not_in_values() -> None:
    config = parse_train(["a-b", "--train.batch-size", "8", "--data.image-size=96", "--out", "my-run"])
    assert (config.data.root, config.train.batch_size, config.data.image_size, config.out) == ("a-b", 8, 96, "my-run")


def test_all_unknown_keys_are_named_at_once_and_all_wrong_values(tmp_path: Path) -> None:
    keys = complaint("--config", write(tmp_path / "a.yaml", "train: {epoch: 3}\noptim: {lrr: 1}\n"))
    assert all(part in keys for part in ("a.yaml", "train.epoch;", "train.epochs?", "optim.lrr"))
    values = complaint("--train.epochs", "many", "--data.hflip", "perhaps")
    assert all(part in values for part in ("train.epochs", "many", "data.hflip", "perhaps"))
    options = complaint("--train.epoch", "3", "--optim.lrr", "1")
    assert all(part in options for part in ("--train.epoch;", "--optim.lrr"))


# ------------------------------------------------------------------------------------------------- who wins


@pytest.mark.parametrize("option_first", [True, False])
def test_the_command_line_overrides_the_file_in_any_order(option_first: bool, tmp_path: Path) -> None:
    file = ["--config", write(tmp_path / "a.yaml", "train: {epochs: 3, batch_size: 8}\n")]
    option = ["--train.epochs", "7"]
    config = parse_train([*option, *file] if option_first else [*file, *option])
    assert (config.train.epochs, config.train.batch_size) == (7, 8)


def test_of_several_files_the_later_wins_key_by_key(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "train: {epochs: 3, batch_size: 8}\nseed: 1\n")
    second = write(tmp_path / "b.yaml", "train: {epochs: 5}\n")
    config = parse_train(["--config", first, "--seed", "2", f"--config={second}"])
    assert (config.train.epochs, config.train.batch_size, config.seed) == (5, 8, 2)


def test_of_an_option_given_twice_the_later_wins() -> None:
    assert parse_train(["--seed", "1", "--seed=2"]).seed == 2


def test_an_option_takes_its_value_after_an_equals_sign_too() -> None:
    assert parse_train(["--data.root=a=b"]).data.root == "a=b"


@pytest.mark.slow
def test_every_shipped_configuration_parses_by_its_bare_name() -> None:
    names = shipped_configs()
    assert {"frozen_head", "tutorial_fine_tune", "tutorial_frozen_head"} <= names.keys()
    for name, path in names.items():
        assert parse_train(["--config", name]) == parse_train(["--config", str(path)])


def test_a_bare_name_with_its_ending_is_a_shipped_configuration_too() -> None:
    assert parse_train(["--config", "frozen_head.yaml"]) == parse_train(["--config", "frozen_head"])


def test_a_file_in_the_current_folder_comes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "frozen_head", "seed: 77\n")
    monkeypatch.chdir(tmp_path)
    assert parse_train(["--config", "frozen_head"]).seed == 77


def test_an_option_prints_the_configuration_instead_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_train(["--config", "frozen_head", "--seed", "3", "--print_config"])
    assert not end.value.code
    file = write(tmp_path / "printed.yaml", capsys.readouterr().out)
    assert parse_train(["--config", file]) == parse_train(["--config", "frozen_head", "--seed", "3"])


def test_the_environment_does_not_configure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADSTART_SEED", "HEADSTART_TRAIN__SEED", "SEED", "HEADSTART_TRAIN_SEED"):
        monkeypatch.setenv(name, "9")
    assert parse_train([]).seed == 0


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0E-3", ".001"])
@pytest.mark.parametrize("in_file", [True, False])
def test_a_number_may_be_written_in_any_usual_way(text: str, in_file: bool, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", f"optim: {{lr: {text}}}\n")
    assert parse_train(["--config", file] if in_file else ["--optim.lr", text]).optim.lr == 0.001


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("train.epochs", "three", "number"),
        ("train.epochs", "1.5", "number"),
        ("train.epochs", "null", "number"),
        ("seed", "x", "number"),
        ("optim.lr", "fast", "number"),
        ("optim.lr", "inf", "number"),
        ("data.hflip", "maybe", "true"),
        ("strategy.name", "fine", "frozen_head"),
        ("runtime.mixed_precision", "fp8", "bf16"),
        ("data.num_workers", "two", "null"),
        ("data.resize_size", "256px", "null"),
        ("optim.backbone_lr", "slow", "null"),
        ("optim.clip_norm", "x", "null"),
        ("runtime.threads", "all", "null"),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_a_wrong_type_is_refused_with_the_key_the_value_and_the_expected_type(
    key: str, value: str, wanted: str, in_file: bool, tmp_path: Path
) -> None:
    section, _, leaf = key.rpartition(".")
    text = f"{section}: {{{leaf}: {value}}}\n" if section else f"{leaf}: {value}\n"
    message = complaint("--config", write(tmp_path / "a.yaml", text)) if in_file else complaint(f"--{key}", value)
    assert key in message
    assert ("a.yaml" in message) is in_file
    assert value in message.replace("None", "null")
    assert wanted in message.replace(value, "")


@pytest.mark.parametrize(
    ("key", "value"),
    [("optim.lr", "0"), ("data.val_fraction", "1.0"), ("train.epochs", "-3"), ("seed", "-1"), ("runtime.threads", "0")],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_a_value_out_of_range_is_refused_by_key_and_value(key: str, value: str, in_file: bool, tmp_path: Path) -> None:
    section, _, leaf = key.rpartition(".")
    text = f"{section}: {{{leaf}: {value}}}\n" if section else f"{leaf}: {value}\n"
    message = complaint("--config", write(tmp_path / "a.yaml", text)) if in_file else complaint(f"--{key}", value)
    assert key in message
    assert re.search(rf"(?<![\d.]){re.escape(value)}(\.0)?(?![\d.]*\d)", message), message


@pytest.mark.parametrize("key", ["optim.lr", "optim.warmup_epochs", "optim.step_epochs", "optim.weight_decay"])
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_a_number_in_a_file_is_finite(key: str, value: str, tmp_path: Path) -> None:
    section, leaf = key.split(".")
    assert key in complaint("--config", write(tmp_path / "a.yaml", f"{section}: {{{leaf}: {value}}}\n"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("runtime.mixed_precision", "no", "no"),
        ("data.hflip", "no", False),
        ("data.root", "007", "007"),
        ("data.root", "2024-01-01", "2024-01-01"),
        ("out", "1e3", "1e3"),
        ("data.image_column", "null", None),
        ("data.image_column", "'null'", None),
        ("data.root", "'null'", "null"),
        ("data.num_workers", "~", None),
        ("train.epochs", "'4'", 4),
    ],
)
def test_what_a_scalar_of_a_file_means_depends_on_the_type_of_its_key(
    key: str, text: str, value: object, tmp_path: Path
) -> None:
    section, _, leaf = key.rpartition(".")
    file = write(tmp_path / "a.yaml", f"{section}: {{{leaf}: {text}}}\n" if section else f"{leaf}: {text}\n")
    assert leaves(parse_train(["--config", file]))[key] == value


@pytest.mark.parametrize("text", ["data: {root: [a, b]}", "data: {root: {a: b}}", "out: null", "train: {epochs: [4]}"])
def test_a_key_that_holds_something_else_than_a_scalar_is_refused_by_name(text: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", f"{text}\n")
    message = complaint("--config", file)
    assert file in message
    assert {"data.root", "out", "train.epochs"} & set(re.findall(r"[\w.]+", message))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("- 1\n- 2\n", "section"),
        ("just words\n", "section"),
        ("train: 4\n", "train"),
        ("train:\n", "train"),
        ("train: {epochs: 4\n", "YAML"),
        ("a: b: c\n", "YAML"),
        ("train: !!python/object/apply:os.system ['true']\n", "YAML"),
        ("1: 2\n", "key 1"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_name(text: str, wanted: str, tmp_path: Path) -> None:
    file = write(tmp_path / "odd.yaml", text)
    message = complaint("--config", file)
    assert file in message
    assert wanted in message


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    assert "picture.yaml" in complaint("--config", str(tmp_path / "picture.yaml"))


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_file_changes_nothing(text: str, tmp_path: Path) -> None:
    assert parse_train(["--config", write(tmp_path / "empty.yaml", text)]) == RunConfig()


def test_a_missing_file_is_refused_and_the_nearest_shipped_name_is_given() -> None:
    assert " tutorial_fine_tune?" in complaint("--config", "tutorial_finetune")


def test_a_missing_file_with_no_near_name_lists_the_shipped_ones() -> None:
    assert "tutorial_frozen_head" in complaint("--config", "nowhere/x.yaml")


def test_a_config_option_without_a_name_is_refused() -> None:
    assert "--config" in complaint("--seed", "1", "--config")


def test_an_option_without_a_value_is_refused_by_name() -> None:
    assert "--train.epochs" in complaint("--train.epochs")


# ------------------------------------------------------------------------------------------------- help


def test_parsing_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from headstart.cli.train import parse_train\n"
        "parse_train(['--config', 'frozen_head', '--data.root', 'x'])\n"
        "print(sorted({'torch', 'datasets', 'accelerate'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_help_of_train_lists_every_key_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "headstart", "train", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [key for key in KEYS if f"--{key} " not in done.stdout] == []
    assert not re.search(r"\| +torch$", done.stderr, flags=re.MULTILINE)


def test_every_key_is_explained_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=-)", text)]
    explained = {e.split()[0]: e.partition("(default: ")[0].split(maxsplit=2)[2:] for e in entries if "(default: " in e}
    assert sorted(explained) == sorted(f"--{key}" for key in KEYS)
    assert [key for key, words in explained.items() if not words] == []


COMMANDS = (
    ["train"],
    ["evaluate"],
    ["predict"],
    ["compare"],
    ["choose"],
    ["data"],
    ["data", "demo"],
    ["data", "bank"],
    ["bench", "features"],
    ["bench", "data"],
    ["doctor"],
    ["doctor", "parity"],
)


def test_the_options_of_all_commands_are_frozen(
    check_golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for command in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        assert not end.value.code
        options = set(re.findall(r"^  (?:-h, )?(--[a-z0-9_.]+)", capsys.readouterr().out, flags=re.MULTILINE))
        assert "--help" in options
        lines += [f"{' '.join(command)} {option}" for option in sorted(options - {"--help"})]
    check_golden("options.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(("old", "new"), [("data.views", "data.augment_on"), ("probe.views", "probe.augmented_copies")])
def test_a_renamed_key_is_refused_with_its_new_name(tmp_path: Path, old: str, new: str) -> None:
    section, key = old.split(".")
    file = tmp_path / "old.yaml"
    file.write_text(f"{section}: {{{key}: 1}}\n")
    for arguments in ([f"--{old}", "1"], ["--config", str(file)]):
        with pytest.raises(InputError, match=rf"{old}.*{new}"):
            parse_train(arguments)
