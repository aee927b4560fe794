"""The JSON schema of configuration files: it accepts what headstart accepts, and its copy in the documentation is
current."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from support import REPOSITORY

from headstart.cli.train import parse_train
from headstart.config import RunConfig
from headstart.config_io import key_types, load_config, shipped_configs, to_yaml
from headstart.config_schema import json_schema
from headstart.errors import InputError

SCHEMA = json_schema()


def mistakes(values: Any) -> list[str]:
    return [error.message for error in Draft7Validator(SCHEMA).iter_errors(values)]


def test_it_is_a_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)


def test_it_has_every_key_with_a_type_a_default_and_a_description() -> None:
    keys: dict[str, Any] = {}
    for name, content in SCHEMA["properties"].items():
        inner = content.get("properties")
        keys |= {name: content} if inner is None else {f"{name}.{key}": value for key, value in inner.items()}
    assert keys.keys() == key_types().keys()
    for key, content in keys.items():
        assert content["description"].endswith("."), key
        assert "default" in content, key
        assert ("type" in content) != ("enum" in content), key


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_configuration_is_valid(name: str) -> None:
    assert mistakes(yaml.safe_load(shipped_configs()[name].read_text(encoding="utf-8"))) == []


def test_the_defaults_and_the_configuration_of_a_run_are_valid() -> None:
    assert mistakes(asdict(RunConfig())) == []
    assert mistakes(yaml.safe_load(to_yaml(RunConfig()))) == []


WRONG = {
    "an unknown key": "train: {epoch: 4}",
    "an unknown section": "training: {epochs: 4}",
    "a key at the top": "epochs: 4",
    "a text for a number": "train: {epochs: many}",
    "a fraction for a whole number": "train: {epochs: 2.5}",
    "another choice": "strategy: {name: freeze}",
    "null where it has no meaning": "train: {epochs: null}",
    "a value for a section": "train: 4",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_headstart_refuses_is_not_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(InputError):
        load_config([tmp_path / "wrong.yaml"])
    assert mistakes(yaml.safe_load(text))


def test_print_schema_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train(["--print_schema"])
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_its_copy_in_the_documentation_is_current() -> None:
    """scripts/make_reference.py writes it."""
    text = (REPOSITORY / "docs" / "reference" / "config.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == SCHEMA
