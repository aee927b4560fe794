"""The keys of the configuration as a JSON schema, for editors, with the docstrings in config.py as descriptions."""

import ast
import inspect
import types
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any, get_args

from headstart import config as config_module
from headstart.config import RunConfig, flat
from headstart.config_io import key_types

_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", types.NoneType: "null"}


def explained() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """For each section its docstring, and each of its keys with the docstring of the field."""
    classes = [node for node in ast.parse(inspect.getsource(config_module)).body if isinstance(node, ast.ClassDef)]
    for node in sorted(classes, key=lambda node: node.name != RunConfig.__name__):
        prefix = "" if node.name == RunConfig.__name__ else node.name.removesuffix("Config").lower() + "."
        pairs = [
            (f"{prefix}{ast.unparse(field.target)}", inspect.cleandoc(str(text.value.value)))
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        ]
        yield (ast.get_docstring(node) or "").rstrip("."), pairs


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 7) of a configuration file: sections and keys with types, choices, defaults, descriptions.

    Limits of numbers are not in it."""
    kinds, defaults = key_types(), flat(asdict(RunConfig()))
    properties: dict[str, Any] = {}
    for title, keys in explained():
        for key, text in keys:
            described = {"description": " ".join(text.split()), "default": defaults[key], **_values(kinds[key])}
            section, _, name = key.rpartition(".")
            if section:
                content = properties.setdefault(section, {"description": f"{title}.", **_object()})
                content["properties"][name] = described
            else:
                properties[name] = described
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of headstart train",
        **_object(),
        "properties": properties,
    }


def _object() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _values(kind: Any) -> dict[str, Any]:
    kinds = get_args(kind) or (kind,)
    if isinstance(kinds[0], str):
        return {"enum": list(kinds)}
    names = [_JSON_TYPES[kind] for kind in kinds]
    return {"type": names[0] if len(names) == 1 else names}
