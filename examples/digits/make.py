"""Make the embedded example: scikit-learn's digits as PNGs, and a small ResNet trained on them.

The 1,797 8x8 images are split once, by class; nothing that is written to ``images/test`` was ever trained on. The
network is the CIFAR family's ResNet-14 with projections (option B), so that every kind of layer occurs; the
preprocessing is the toolkit's own ``cifar`` preset, so that every command works without a flag.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from calibration.preprocess import PRESETS
from exporter.models.resnet import ResNet, build
from exporter.models.variants import cifar_blueprint

_TEST_IMAGES = 360
_CALIBRATION_PER_CLASS = 30
_SHIFT = 2  # pixels of random translation while training
_BATCH = 64

Pixels = npt.NDArray[np.uint8]


def load() -> tuple[list[Pixels], npt.NDArray[np.int64]]:
    """The digits as 32x32 RGB images ``[32, 32, 3]``, and their classes."""
    digits = load_digits()
    images = []
    for values in digits.images:  # [8, 8], 0 to 16
        grey = Image.fromarray((values * 255 / 16).round().astype(np.uint8))
        images.append(np.asarray(grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")))
    return images, digits.target.astype(np.int64)


def tensors(images: list[Pixels]) -> Tensor:
    """Images as the network takes them: ``[N, 3, 32, 32]``."""
    return torch.from_numpy(np.stack([PRESETS["cifar"].apply_pixels(image) for image in images]))


def shifted(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to two pixels, its edge repeated."""
    padded = nn.functional.pad(batch, (_SHIFT,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * _SHIFT + 1, (len(batch), 2), generator=generator).tolist()
    height, width = batch.shape[2:]
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)])


def train(model: ResNet, images: Tensor, classes: Tensor, epochs: int, seed: int) -> None:
    """SGD with momentum under a one-cycle schedule; changes the model and leaves it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        begin, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for chosen in (order[start : start + _BATCH] for start in range(0, len(order), _BATCH)):
            logits = model(shifted(images[chosen], generator))
            loss = nn.functional.cross_entropy(logits, classes[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1}: loss {total / len(images):.3f}, {time.perf_counter() - begin:.1f} s", flush=True)
    model.eval()


def accuracy(model: ResNet, images: Tensor, classes: Tensor) -> float:
    """Top-1 in [0, 1]."""
    with torch.inference_mode():
        return float((model(images).argmax(1) == classes).float().mean())


def write_images(folder: Path, images: list[Pixels], classes: npt.NDArray[np.int64]) -> None:
    """One folder per class, numbered files; grey on disk, as the digits are."""
    for number in range(10):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        for index, position in enumerate(np.flatnonzero(classes == number)):
            path = folder / str(number) / f"{index:04}.png"
            Image.fromarray(images[position]).convert("L").save(path, optimize=True)


def main() -> None:
    """Train, and write checkpoint and images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    # Sums are split over threads: with another number of them the last bits, and so the weights, differ.
    torch.set_num_threads(2)
    images, classes = load()
    positions = np.arange(len(images))
    trained, held_out = train_test_split(positions, test_size=_TEST_IMAGES, stratify=classes, random_state=given.seed)
    rng = np.random.default_rng(given.seed)
    calibration = np.concatenate(
        [rng.choice(trained[classes[trained] == number], _CALIBRATION_PER_CLASS, replace=False) for number in range(10)]
    )
    torch.manual_seed(given.seed)
    model = build(cifar_blueprint(14, option="B", num_classes=10))
    train(model, tensors([images[i] for i in trained]), torch.from_numpy(classes[trained]), given.epochs, given.seed)
    top1 = accuracy(model, tensors([images[i] for i in held_out]), torch.from_numpy(classes[held_out]))
    print(f"top-1 on {len(held_out)} images that were held out: {100 * top1:.2f} %")

    shutil.rmtree(given.out / "images", ignore_errors=True)  # another seed splits otherwise
    write_images(given.out / "images" / "test", [images[i] for i in held_out], classes[held_out])
    write_images(given.out / "images" / "calibration", [images[i] for i in calibration], classes[calibration])
    content = {"state_dict": model.state_dict(), "epoch": given.epochs, "top1": top1}
    torch.save(content, given.out / "digits_resnet14.pth")


if __name__ == "__main__":
    main()
