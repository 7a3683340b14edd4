"""Features of images from a small classifier, trained on the data itself.

FID's Inception network knows photographs, not digits or clothes, and its weights must be had from somewhere. A
convolutional network that tells the classes of the data apart is a feature extractor made for it: its last layer but
one, averaged over the image, as Inception's. Distances in its features are no FID of any paper; they compare models of
one data set with each other, and with the data itself. They have seen the training images, and hold these closer
together than others: of the held-out digits no more than two in five are "among" them by precision. Read a figure
beside that of held-out images against the same reference.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmkit.arguments import check_count, check_device, check_instance, check_number, shown
from fmkit.data import Split
from fmkit.errors import ArgumentError
from fmkit.metrics.cache import Kept, fingerprint
from fmkit.randomness import stream, stream_seed
from fmkit.shapes import check_data, check_finite

VERSION = 1  # of the network and its training: a change makes every kept classifier another one
BATCH = 512


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """How the classifier is trained.

    Attributes:
        steps: of AdamW, its learning rate warmed up and then brought down to nothing; at least 10.
        batch_size: images a step.
        width: channels of the first layer; there are twice as many features.
        lr: the greatest learning rate.
        seed: of the weights, the batches and the shifts.

    Raises:
        ArgumentError: for numbers out of range.
    """

    steps: int = 1500
    batch_size: int = 128
    width: int = 32
    lr: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"steps": 10, "batch_size": 2, "width": 1, "seed": 0}.items():
            check_count(name, getattr(self, name), least)
        if check_number("lr", self.lr) <= 0:
            raise ArgumentError(f"lr is {self.lr}, expected a positive number")


class Classifier(nn.Module):
    """A convolutional network that tells images of one shape apart; `classifier` makes a trained one.

    Images are in the data's units: k + u, grey level k in 0 .. levels - 1 and u in [0, 1). They are first rounded down
    and cut to their levels, as in a saved picture, so dequantized images have the features of integer ones.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes, at least 2.
        levels: number of grey levels, at least 2.
        width: channels of the first layer; there are twice as many features.

    Attributes:
        accuracy: share of held-out images that it knows; NaN until it is trained.
        identity: of its weights and its data, for what is computed from its features and kept.

    Raises:
        ArgumentError: for sizes out of range.
    """

    moments: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, levels: int, width: int = 32) -> None:
        super().__init__()
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise ArgumentError(f"images have shape {shown(shape)}, expected (C, H, W)")
        self.shape = tuple(check_count("a side of the images", n) for n in shape)
        self.classes, self.levels = check_count("classes", classes, 2), check_count("levels", levels, 2)
        self.accuracy, self.identity = float("nan"), ""
        self.register_buffer("moments", torch.tensor([0.0, 1.0]))  # mean and standard deviation of a pixel
        channels = [check_count("width", width), 2 * width, 2 * width, 2 * width]
        strides = [2, 2, 2, 1] if min(self.shape[1:]) >= 16 else [1, 2, 1, 1]  # to 4x4 pixels, of 28x28 as of 8x8
        before = [self.shape[0], *channels[:-1]]
        self.trunk = nn.Sequential(*(_block(*sizes) for sizes in zip(before, channels, strides, strict=True)))
        self.head = nn.Linear(channels[-1], self.classes)

    def forward(self, images: Tensor) -> Tensor:
        """`features`, so that it stands wherever a function of features may."""
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """`(B, 2 width)` features, without gradients.

        Raises:
            ArgumentError: for images of another shape, without values, or in other units.
        """
        return self.with_logits(images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """`(B, classes)` unnormalised log-probabilities; errors as of `features`."""
        return self.with_logits(images)[1]

    def predict(self, images: Tensor) -> Tensor:
        """`(B,)` labels; errors as of `features`."""
        return self.logits(images).argmax(1)

    def _answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.trunk((x - self.moments[0]) / self.moments[1]).mean((2, 3))
        return pooled, self.head(pooled)

    @torch.no_grad()
    def with_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features` and `logits` of one evaluation; errors as of `features`."""
        levels = grey_levels(images, self.shape, self.levels)
        device, training = self.moments.device, self.training
        self.eval()  # a batch must not depend on its neighbours
        try:
            pieces = [self._answer(batch.to(device, torch.float32)) for batch in levels.split(BATCH)]
            features, logits = (torch.cat(part) for part in zip(*pieces, strict=True))
            return features, logits
        finally:
            self.train(training)


def _block(before: int, channels: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def grey_levels(images: Tensor, shape: tuple[int, ...], levels: int) -> Tensor:
    """Images `(B, C, H, W)` rounded down to integers and cut to 0 .. levels - 1, as saving them as pictures would.

    Raises:
        ArgumentError: for another shape, values that are not finite, or images that span two grey levels or fewer of
            many: they are in other units, as [-1, 1], or blank.
    """
    images = images.float() if isinstance(images, Tensor) and images.dtype == torch.uint8 else images
    check_finite(check_data(images, "images"), "images")
    if tuple(images.shape[1:]) != tuple(shape):
        raise ArgumentError(f"images have shape {tuple(images.shape)}, expected (B, {', '.join(map(str, shape))})")
    low, high = (float(v) for v in torch.aminmax(images))
    if levels > 8 and (high - low <= 2 or low >= levels or high < 0):
        raise ArgumentError(
            f"images range over [{low:.4g}, {high:.4g}], expected grey levels 0 .. {levels - 1}: samples in the data's "
            "units, and not all blank"
        )
    return images.detach().floor().clamp(0, levels - 1)


def classifier(
    split: Split,
    settings: ClassifierSettings | None = None,
    *,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """A classifier trained on a split of labelled images, or the one kept from the last time.

    Args:
        split: integer images with labels, as `Digits(flat=False, labels=True).load()`, `MNIST5k(labels=True).load()`.
        settings: how it is trained; 1,500 steps by default.
        cache: folder in which it is kept: by default what FMKIT_CACHE says, else ~/.cache/fmkit. A kept one that is
            damaged is trained again, with a warning.
        device: where it is trained and used.

    Returns:
        The classifier, ready to answer, with its held-out accuracy.

    Raises:
        ArgumentError: for images that are not in memory, no `(C, H, W)`, no integer grey levels, or without labels.
    """
    settings = check_instance("settings", settings or ClassifierSettings(), ClassifierSettings)
    check_device(device)
    train, test = _labelled(split)
    data = fingerprint(*train, *test)
    key = {"version": VERSION, "data": data, "levels": split.levels, "settings": dataclasses.asdict(settings)}
    kept = Kept("classifier", key, cache)
    with torch.random.fork_rng(devices=[]):  # what initialises layers is the global generator
        torch.default_generator.manual_seed(stream_seed(settings.seed, "classifier"))
        shape = tuple(split.test.shape[1:])
        network = Classifier(shape, split.classes, split.levels, settings.width)  # type: ignore[arg-type]
    found = kept.read()
    if found is None or not _restored(network, found, kept):
        network.to(device)
        _train(network, *train, settings)
        network.accuracy = (network.predict(test[0].float()).cpu() == test[1]).float().mean().item()
        kept.write(network.state_dict(), accuracy=network.accuracy)
    network.identity = fingerprint(*network.state_dict().values())
    return network.to(device).eval().requires_grad_(False)


def _restored(network: Classifier, found: tuple[dict[str, Tensor], dict[str, Any]], kept: Kept) -> bool:
    tensors, header = found
    try:
        if not all(v.isfinite().all() for v in tensors.values()):
            raise ValueError("its weights are not finite")
        network.load_state_dict(tensors)
        network.accuracy = check_number("accuracy", header.get("accuracy"))
    except (RuntimeError, ValueError) as error:
        kept.damaged(f"{kept.path} does not fit its own description: {error}")
        return False
    return True


def _train(network: Classifier, x: Tensor, y: Tensor, settings: ClassifierSettings) -> None:
    """AdamW on cross-entropy, whole batches shifted by up to one pixel in twenty-eight of a side."""
    device, reach = network.moments.device, [side // 28 for side in network.shape[1:]]
    values = x.double()
    network.moments.copy_(torch.stack([values.mean(), values.std().clamp_min(1e-3)]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps)
    network.train()
    for step in range(settings.steps):
        generator = stream(settings.seed, "classifier-batch", step)
        rows = torch.randint(len(x), (settings.batch_size,), generator=generator)
        shift = [int(torch.randint(-n, n + 1, (), generator=generator)) for n in reach]
        batch = x[rows].to(device, torch.float32).roll(shift, (2, 3))
        loss = F.cross_entropy(network._answer(batch)[1], y[rows].to(device), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _labelled(split: Split) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out images as small integers, each with its labels."""
    check_instance("split", split, Split)
    if split.levels is None or split.classes is None:
        missing = "grey levels" if split.levels is None else "classes"
        raise ArgumentError(f"the split has no {missing}, expected labelled integer images (labels=True)")
    if not isinstance(split.train.x, Tensor):
        raise ArgumentError(f"the training images are {shown(split.train.x)}, expected them in memory")
    known = {"train": (split.train.x, split.train.cond), "test": (split.test, split.test_cond)}
    train, test = (_integers(name, x, y, split) for name, (x, y) in known.items())
    return train, test


def _integers(part: str, x: Tensor, y: Any, split: Split) -> tuple[Tensor, Tensor]:
    levels, classes = split.levels or 0, split.classes or 0
    if x.ndim != 4:
        raise ArgumentError(f"the {part} images have shape {tuple(x.shape)}, expected (N, C, H, W) (flat=False)")
    check_finite(x, f"the {part} images")
    if x.min() < 0 or x.max() > levels - 1 or (x != x.floor()).any():
        raise ArgumentError(f"the {part} images hold other numbers than the grey levels 0 .. {levels - 1}")
    if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.is_floating_point():
        raise ArgumentError(f"the labels of the {part} images are {shown(y)}, expected integers ({len(x)},)")
    if y.min() < 0 or y.max() >= classes:
        raise ArgumentError(f"the labels of the {part} images are not all in 0 .. {classes - 1}")
    return x.to(torch.uint8 if levels <= 256 else torch.int32), y.long()
