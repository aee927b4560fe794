"""The features of the images of a run, from the feature bank."""

from collections.abc import Sequence

from headstart.data.samples import Manifest
from headstart.features.bank import Bank
from headstart.features.extraction import BankTransform
from headstart.features.training_set import BankFeatures, bank_features
from headstart.model.weights import Weights
from headstart.runtime.signals import StopRequest
from headstart.training.session import Session


def features_of_run(
    session: Session, bank: Bank, transforms: Sequence[BankTransform], manifest: Manifest, weights: Weights
) -> BankFeatures:
    """The features of the images of a run. All processes call it. Raises Stopped after a signal; the features computed
    until then are kept in the bank."""
    with StopRequest("the features in progress are stored") as stop:
        return bank_features(
            session.accelerator,
            session.config,
            bank,
            transforms,
            manifest,
            weights,
            session.spec,
            stop=stop,
            progress=session.progress,
        )
