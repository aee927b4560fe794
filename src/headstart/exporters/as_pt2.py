"""A torch.export program: no Python code of ours or torchvision's is needed to run it."""

import json
from pathlib import Path

import torch

from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities, from_pixels

_EXTRA = "headstart.json"


def write(original: Original, path: Path) -> None:
    """Normalised float32 (n, 3, S, S) in, logits (n, C) out, for any n; class names and preprocessing in an extra file.

    Without example inputs, which would be stored as a pickle, and without the paths of source files on this machine."""
    side = original.info.preprocess.image_size
    example = torch.zeros(2, 3, side, side)  # two, because a batch of one would be taken for a constant
    with torch.no_grad():
        program = torch.export.export(original.network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack"):
            node.meta.pop(key, None)
    program._example_inputs = None
    torch.export.save(program, path, extra_files={_EXTRA: json.dumps(original.metadata(), ensure_ascii=False)})


def open_it(path: Path) -> Probabilities:
    extra = {_EXTRA: ""}
    network = torch.export.load(path, extra_files=extra).module()
    return from_pixels(json.loads(extra[_EXTRA]), network)
