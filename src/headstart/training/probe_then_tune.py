"""What probe_then_tune adds to a run on images: the head to start from, and whether tuning improved on it."""

from dataclasses import asdict
from typing import Any

import torch

from headstart.data.samples import Manifest
from headstart.evaluation.predictions import Predictions
from headstart.evaluation.statistics import paired
from headstart.features.extraction import bank_transforms
from headstart.features.training_set import open_bank
from headstart.model.network import Network
from headstart.model.weights import Weights
from headstart.training.fit_head import fit_head
from headstart.training.run_features import features_of_run
from headstart.training.session import Session
from headstart.training.state import TrainingState


def start_from_probe(session: Session, manifest: Manifest, weights: Weights, model: Network) -> dict[str, Any]:
    """Fit the head on the features of the frozen backbone and put it into the model; returns how it was fitted."""
    config, accelerator = session.config, session.accelerator
    bank = open_bank(accelerator, config, weights, session.spec)
    copies = config.probe.augmented_copies
    transforms = bank_transforms(config.data, session.spec, augmented_copies=copies, seed=config.seed)
    features = features_of_run(session, bank, transforms, manifest, weights)
    fitted = fit_head(accelerator, config, manifest, features)
    model.head_layer.weight.data.copy_(torch.from_numpy(fitted.head.weight))
    model.head_layer.bias.data.copy_(torch.from_numpy(fitted.head.bias))
    return fitted.details


def compare_with_probe(state: TrainingState, predictions: Predictions) -> tuple[dict[str, Any] | None, list[str]]:
    """What the summary holds about the probe, and one line on whether tuning improved on it; None and nothing for a
    strategy without a probe. predictions: of the best epoch, on the validation images."""
    if not state.probe:
        return None, []
    details = dict(state.probe)
    probe_is_correct = details.pop("is_correct")
    if state.best_epoch == 0:
        return details | {"tuning_kept": False}, ["no epoch of tuning improved on the probe; the probe is kept"]
    result = paired(probe_is_correct, predictions.is_correct.tolist())
    low, high = result.ci95
    line = (
        f"tuned against probe on the same images: {result.gained} gained, {result.lost} lost, accuracy "
        f"{result.difference:+.1%} [{low:+.1%}, {high:+.1%}], exact McNemar p = {result.p_value:.2g}: "
        f"{'' if result.beyond_chance else 'not '}significant at p < 0.05; the tuned model is kept"
    )
    return details | {"tuning_kept": True, "paired": asdict(result)}, [line]
