"""headstart: a pretrained ResNet-18, fine-tuned or with a new head, for your folder of images."""

from headstart.api import load, train
from headstart.api import prepare_environment as prepare_environment
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
from headstart.errors import InputError

__all__ = [
    "DataConfig",
    "InputError",
    "ModelConfig",
    "OptimConfig",
    "ProbeConfig",
    "RunConfig",
    "RuntimeConfig",
    "StrategyConfig",
    "TrainConfig",
    "load",
    "train",
]
