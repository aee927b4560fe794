"""The data of a run on cached features: weights, preprocessing, bank, views and images."""

from accelerate import Accelerator
from PIL import Image

from headstart.config import RunConfig
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import cache_limit_for
from headstart.data.samples import Manifest
from headstart.data.sources.open import open_source
from headstart.data.transforms import Preprocess
from headstart.data_doctor.quick_check import describe_data
from headstart.features.bank import EVAL_TRANSFORM, Bank, row_name
from headstart.features.extraction import BankTransform, bank_transforms
from headstart.features.training_set import open_bank
from headstart.model.weights import Weights, obtain_weights
from headstart.runtime.processes import on_main


def open_data(
    accelerator: Accelerator, config: RunConfig, *, pooled: bool = False
) -> tuple[Weights, Preprocess, Bank, list[BankTransform], Manifest]:
    """Weights, preprocessing, bank, views and images of a resolved configuration; an image that the bank knows is not
    decoded, and the pixels of the others are kept for the extraction while there is room. pooled: training and validation images are one set to the
    caller. Raises InputError in all processes if one of them cannot be had."""
    weights, spec = obtain_weights(accelerator, config.model.weights), Preprocess.of(config.data)
    bank = open_bank(accelerator, config, weights, spec)
    data = config.data
    cache_limit = cache_limit_for(data)
    transforms = bank_transforms(
        data, spec, augmented_copies=config.probe.augmented_copies, seed=config.seed, cache_limit=cache_limit
    )

    def keep(split: str | None, sha256: str, image: Image.Image) -> None:
        for transform in (
            transforms[:1] if split == "val" else transforms[:2]
        ):  # all augmented views prepare the image alike
            transform.transform.keep(sha256, image)

    manifest = on_main(
        accelerator,
        lambda: build_manifest(
            open_source(data),
            data,
            seed=config.seed,
            say=print,
            decoder=spec.decode,
            decodes=lambda sha256: row_name(sha256, EVAL_TRANSFORM) in bank,
            keep=keep,
        ),
    )
    accelerator.print(describe_data(manifest, pooled=pooled))
    return weights, spec, bank, transforms, manifest
