"""Transfer learning for folders of images: a pretrained backbone, fine-tuned or with a new head.

Train on a folder with one subfolder of images per class, and classify an image:

    import headstart

    run = headstart.train("photos", config="frozen_head", out="runs/first")
    print(run.accuracy, run.accuracy_ci95, run.report_path)

    predictor = headstart.load("runs/first")
    print(predictor.predict("image.jpg")[0].label)

The functions, each with the command that does the same:

    train        headstart train       train a classifier; returns a Run
    load         headstart predict     load a finished model; returns a Predictor
    evaluate     headstart evaluate    evaluate a run on labelled images; returns an Evaluation
    compare      headstart compare     compare runs statistically on the same images; returns a Comparison
    choose       headstart choose      compare backbones on a data set, and choose one; returns a Choice
    verify       headstart verify      check that this machine reproduces the outputs; returns a Verification
    export       headstart export      write a model for another program; returns an Export
    check_data   headstart data check  find problems of a data set; returns a DataReport

A mistake in the arguments or in the data raises InputError, which is a ValueError. Results are frozen dataclasses with
`to_dict()` and `to_json()`; the module `headstart.results` documents their parts. The functions print nothing: messages
go to `logging.getLogger("headstart")`. A complete configuration is a RunConfig with one dataclass per section.

The public interface consists of the names listed here and of the module `headstart.results`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.api import Run, check_data, choose, compare, evaluate, export, load, train, verify
    from headstart.config import (
        DataConfig,
        ModelConfig,
        OptimConfig,
        ProbeConfig,
        RunConfig,
        RuntimeConfig,
        StrategyConfig,
        TrainConfig,
    )
    from headstart.errors import InputError, Stopped
    from headstart.results import Choice, Comparison, DataReport, Evaluation, Export, ExportRefused, Verification

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "Comparison",
    "DataConfig",
    "DataReport",
    "Evaluation",
    "Export",
    "ExportRefused",
    "InputError",
    "ModelConfig",
    "OptimConfig",
    "ProbeConfig",
    "Run",
    "RunConfig",
    "RuntimeConfig",
    "Stopped",
    "StrategyConfig",
    "TrainConfig",
    "Verification",
    "__version__",
    "check_data",
    "choose",
    "compare",
    "evaluate",
    "export",
    "load",
    "train",
    "verify",
]

_HOMES = ("api", "config", "errors", "results")  # the modules that define the names of __all__


def __getattr__(name: str) -> object:
    """Import a public name when it is used first, so that `import headstart` and the command line start at once."""
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"headstart.{home}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module 'headstart' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
