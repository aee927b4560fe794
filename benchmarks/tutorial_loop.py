"""Baseline: the plain PyTorch transfer-learning tutorial loop, run on a folder with train/ and val/.

Each epoch adds one JSON object to the output file (one per line); the last line is a summary.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_loaders(data: Path, batch_size: int, num_workers: int) -> dict[str, DataLoader]:
    tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    views = {
        "train": transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *tail]),
        "val": transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *tail]),
    }
    # ImageFolder's default list of extensions leaves out .gif, so stray files of that kind are skipped.
    return {
        phase: DataLoader(
            datasets.ImageFolder(str(data / phase), transform=view),
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
        )
        for phase, view in views.items()
    }


def make_model(weights: Path, num_classes: int, frozen: bool) -> nn.Module:
    model = models.resnet18()
    state = load_file(str(weights))
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    if frozen:
        for param in model.parameters():
            param.requires_grad = False
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model


def run_phase(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer | None = None
) -> tuple[float, int, int]:
    """One pass over the loader, training if an optimizer is given: mean loss, correct, count."""
    # As in the tutorial, train() also moves the BatchNorm statistics of a frozen backbone.
    model.train(optimizer is not None)
    criterion = nn.CrossEntropyLoss()
    loss_sum, correct, count = 0.0, 0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for inputs, labels in loader:
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += int((outputs.argmax(1) == labels).sum())
            count += len(labels)
    return loss_sum / count, correct, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 weights, .safetensors")
    parser.add_argument("--strategy", choices=["fine_tune", "frozen_head"], default="fine_tune")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, help="output file, one JSON object per line")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    loaders = make_loaders(args.data, args.batch_size, args.num_workers)
    model = make_model(args.weights, len(loaders["train"].dataset.classes), args.strategy == "frozen_head")
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)

    start, best = time.perf_counter(), 0
    with args.json.open("w") as out:
        for epoch in range(1, args.epochs + 1):
            t0 = time.perf_counter()
            train_loss, train_correct, train_n = run_phase(model, loaders["train"], optimizer)
            scheduler.step()
            t1 = time.perf_counter()
            val_loss, val_correct, val_n = run_phase(model, loaders["val"])
            t2 = time.perf_counter()
            best = max(best, val_correct)
            row = {"epoch": epoch, "train_loss": train_loss, "train_acc": train_correct / train_n}
            row |= {"val_loss": val_loss, "val_correct": val_correct, "val_n": val_n}
            print(json.dumps(row | {"train_s": t1 - t0, "val_s": t2 - t1}), file=out, flush=True)
        print(json.dumps({"best_val_correct": best, "wall_s": time.perf_counter() - start}), file=out)


if __name__ == "__main__":
    main()
