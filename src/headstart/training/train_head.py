"""Train a head on the cached features of a frozen backbone. Imports neither torchvision nor datasets: importing them
takes longer than the run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from headstart.config import RunConfig
from headstart.data.decode import UnreadableImage
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import cache_limit_for
from headstart.data.samples import Manifest
from headstart.data.sampling import epoch_order, keys_of
from headstart.data.source import place_in
from headstart.data.sources.open import open_source
from headstart.data.transforms import PixelCache, Preprocess
from headstart.data_doctor.quick_check import describe_data, warn_of_mirrored_classes
from headstart.errors import OwnInputError
from headstart.features.bank import EVAL_TRANSFORM, Bank, row_name
from headstart.features.extraction import BankTransform, bank_transforms
from headstart.features.nearest_neighbours import knn_accuracy, searched_rows
from headstart.features.training_set import BankFeatures, backbone_of, open_bank
from headstart.messages import info
from headstart.model.open_set import reference_rows
from headstart.model.weights import Weights
from headstart.report.image_grid import image_grid
from headstart.runtime.processes import on_main
from headstart.training.finish import Result, model_info
from headstart.training.fit_head import fit_head, predict_val
from headstart.training.run_features import features_of_run
from headstart.training.session import Session
from headstart.training.state import TrainingState


def train_head(session: Session) -> Result:
    """Fit the head as configured. All processes call it.

    Raises InputError before anything is written if the input is wrong, and Stopped after a signal; the features
    computed until then are kept in the bank.
    """
    weights = session.obtain_weights()
    config, accelerator = session.config, session.accelerator
    bank, transforms, manifest = load_data(accelerator, config, weights, session.spec)
    if config.trains_by_epochs:
        config = session.fit_batch_size(len(manifest.of("train")))
    features = features_of_run(session, bank, transforms, manifest, weights)
    fitted = fit_head(accelerator, config, manifest, features)
    session.open_folder(manifest, partial(draw_train_batch, session, manifest, transforms), state=TrainingState())
    if accelerator.is_main_process:
        for line in fitted.lines:
            session.folder.log(line)
    backbone, _ = backbone_of(config, weights)
    knn, note = nearest_neighbours(features)
    plain = np.flatnonzero(features.plain)
    plain = plain[reference_rows(features.train_labels[plain], seed=config.seed)]
    extraction = features.extraction
    return Result(
        info=model_info(session, manifest, weights, measured_on="feature bank"),
        manifest=manifest,
        weights=weights,
        tensors={
            **backbone,
            f"{session.backbone.head}.weight": torch.from_numpy(fitted.head.weight).float(),
            f"{session.backbone.head}.bias": torch.from_numpy(fitted.head.bias).float(),
        },
        predictions=predict_val(fitted.head, features),
        best_epoch=fitted.best_epoch,
        epochs=fitted.epochs,
        chosen_on_val=fitted.epochs > 1,
        out_of_fold=fitted.out_of_fold,
        references=(features.train[plain], features.train_labels[plain]),
        images_per_s=extraction.computed / extraction.seconds if extraction.computed else None,
        probe=fitted.details | knn,
        features={
            "bank": str(features.folder),
            "form": features.form,
            "rows": extraction.wanted,
            "computed": extraction.computed,
            "seconds": extraction.seconds,
        },
        notes=[note],
        found=str(fitted),
    )


def load_data(
    accelerator: Accelerator, config: RunConfig, weights: Weights, spec: Preprocess
) -> tuple[Bank, list[BankTransform], Manifest]:
    """Feature bank, transforms and images. Images that the bank has features of are not decoded; the pixels of
    the others are kept for the extraction."""
    data, bank = config.data, open_bank(accelerator, config, weights, spec)
    copies, limit = config.probe.augmented_copies, cache_limit_for(data)
    transforms = bank_transforms(data, spec, augmented_copies=copies, seed=config.seed, cache_limit=limit)

    # all augmented copies share the decoded pixels of an image
    cache = PixelCache(train=[one.transform for one in transforms[:2]], val=[transforms[0].transform])
    manifest = on_main(
        accelerator,
        lambda: build_manifest(
            open_source(data),
            data,
            seed=config.seed,
            decoder=spec.decode,
            known=lambda sha256: row_name(sha256, EVAL_TRANSFORM) in bank,
            cache=cache,
        ),
    )
    info(accelerator, describe_data(manifest))
    if copies:
        warn_of_mirrored_classes(accelerator, manifest, data)
    return bank, transforms, manifest


def nearest_neighbours(features: BankFeatures) -> tuple[dict[str, float], str]:
    """The accuracy of 5 nearest neighbours on the same features, for the summary, and in one line."""
    labels = features.train_labels[features.plain]
    accuracy = knn_accuracy(features.train.only(features.plain), labels, features.val, features.val_labels)
    count = len(labels[searched_rows(len(labels))])
    among = f" among {count} of the {len(labels)} training images" if count < len(labels) else ""
    return {"knn_accuracy": accuracy, "knn_images": count}, (
        f"5 nearest neighbours on the same features{among}: accuracy {accuracy:.1%}"
    )


def draw_train_batch(session: Session, manifest: Manifest, transforms: Sequence[BankTransform], path: Path) -> None:
    """Training images, as the first augmented copy if there are copies."""
    samples, transform = manifest.of("train"), transforms[min(1, len(transforms) - 1)]
    order = epoch_order(keys_of(samples.column("id")), seed=session.config.seed, epoch=0)
    picked = [samples[int(index)] for index in order[:12]]

    def load(name: str) -> Image.Image:
        try:
            return session.spec.decode(manifest.source.read(name))
        except (UnreadableImage, OSError) as error:
            place = place_in(manifest.source, name)
            raise OwnInputError(f"{place} was readable when the run began and is not now: {error}") from None

    image_grid(
        path,
        [transform.pixels(sample.sha256, partial(load, sample.path)) for sample in picked],
        [sample.label for sample in picked],
    )
