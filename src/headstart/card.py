"""README.md of a run folder: what the model is and how to load it, from the run's own facts."""

from pathlib import Path
from typing import Any

from headstart.artifacts import read_info


def model_card(folder: Path, values: dict[str, Any], *, chosen_on_val: bool) -> str:
    """Markdown with a metadata block as the Hugging Face hub reads it."""
    info = read_info(folder / "model.safetensors")
    low, high = values["accuracy_ci95"]
    classes = ", ".join(info.classes)
    spec = info.preprocess
    chosen = (
        "The epoch was chosen on these same images, so expect a\nlittle less on new ones."
        if chosen_on_val
        else "These images chose nothing."
    )
    return f"""---
library_name: headstart
pipeline_tag: image-classification
tags: [image-classification, resnet18, transfer-learning]
---
# ResNet-18 for {classes}

Strategy `{info.strategy}` on `{info.weights}` weights, seed {info.seed}, trained with headstart {info.versions["headstart"]}.

Validation: accuracy {values["accuracy"]:.4f} ({values["correct"]} of {values["n"]} images, Wilson 95 % interval
{low:.4f} to {high:.4f}), log loss {values["loss"]:.4f}. {chosen}

Input: RGB, short side to {spec.resize_size} px ({spec.interpolation}, antialiased), central {spec.image_size} px square, divided by 255,
mean {list(spec.mean)}, std {list(spec.std)}. Output: logits of {len(info.classes)} classes, in this order: {classes}.

```
headstart predict {folder.name} IMAGES...
```

```python
from safetensors.torch import load_file
from torchvision.models import resnet18

model = resnet18(num_classes={len(info.classes)})
model.load_state_dict(load_file("model.safetensors"), strict=True)
model.eval()
```
"""
