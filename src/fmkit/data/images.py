"""Images as data: what every set of them has in common.

Images are integer grey levels k in 0 .. 255. In the user's units a density is over k + u, u uniform in [0, 1)
(dequantization); the model's are y = (k + u)/128 - 1 in [-1, 1), and the transform owns what that does to a density:
log p(k + u) = log p(y) - d log 128, 7 bits a number (Lipman et al., arXiv 2210.02747, App. C).
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fmkit.arguments import check_count
from fmkit.data.base import Data, DataSet, Split
from fmkit.data.items import Items, Pictures, Rows, check_room, length, recoloured
from fmkit.data.pixels import InTurn, dequantize, fit, flip
from fmkit.errors import ArgumentError
from fmkit.randomness import stream
from fmkit.transforms import Affine

LEVELS = 256
HELD_OUT = 0.2
mirrored = flip  # `flip` is also what the choice of it is called


def image_split(
    train: Any,
    test: Any = None,
    *,
    labels: bool = False,
    size: int | None = None,
    flip: bool = False,
    limit: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    workers: int | None = None,
) -> Split:
    """A split of images, whatever library they come from: what `Trainer.fit` and `fmkit.evaluation` take.

    Args:
        train: `Pictures`, or anything with `len` and items: a torchvision or Hugging Face data set, a list; see
            `Items`.
        test: held-out images in the same forms; by default a fifth of `train`, the same whatever the seed.
        labels: the label as a condition.
        size: side of the images, cropped to a square and resized (see `fit`); as they are by default.
        flip: mirror images, left for right, half of the time while training.
        limit: at most so many images of each part, drawn once for all.
        channels: 1 for grey, 3 for colour; those of the first image by default.
        classes: number of classes; one more than the greatest label by default.
        workers: do not hold the training images in memory, but let so many processes decode them when they are due (0:
            the process that trains).

    Returns:
        A split with 256 levels; images are flipped and dequantized afresh in every batch.

    Raises:
        ArgumentError: for an image that cannot be read, or is unlike the first, by its name; for more images than
            memory should hold; where labels are asked for and missing.
    """
    if test is None:
        train, test = _held_out(train)
    kept, test = _some(train, limit, "train"), _some(test, limit, "test")
    lazy = Items(kept, size, channels) if workers is not None and not isinstance(kept, Pictures) else None
    known = None if lazy else _in_memory(kept, size, channels)
    shape = lazy.shape if lazy else tuple(known.x.shape[1:])  # type: ignore[union-attr]
    assert shape is not None  # a set of images has one
    held = _in_memory(test, size, shape[0])
    if tuple(held.x.shape[1:]) != shape:
        raise ArgumentError(f"training images have shape {shape} and held-out ones {tuple(held.x.shape[1:])}")
    if labels:
        classes = _classes(lazy, known, held, classes)
    data = Data(
        Lazy(lazy, labels).loader(workers or 0) if lazy else known.x.float(),  # type: ignore[union-attr]
        known.y if labels and known else None,
        transform=Affine(LEVELS / 2, LEVELS / 2),
        augment=InTurn([mirrored, dequantize]) if flip else dequantize,
    )
    return Split(data, held.x.float(), held.y if labels else None, classes if labels else None, LEVELS)


class ImageSet(DataSet):
    """The base class of data sets of images in memory. A subclass implements `read`.

    Args:
        labels: the class as a condition.
        size: side of the images, cropped to a square and resized (see `fit`); as they are by default.
        flip: mirror images, left for right, half of the time while training.
        limit: at most so many images of each part, drawn once for all.

    Raises:
        ArgumentError: for numbers out of range.
    """

    def __init__(
        self, labels: bool = False, size: int | None = None, flip: bool = False, limit: int | None = None
    ) -> None:
        super().__init__()
        self.labels, self.flip = labels, flip
        self.size = None if size is None else check_count("size", size)
        self.limit = None if limit is None else check_count("limit", limit)

    @abc.abstractmethod
    def read(self) -> tuple[Pictures, Pictures | None]:
        """Training and held-out images; None instead of these holds out a fifth."""

    def load(self, seed: int = 0) -> Split:
        check_count("seed", seed, least=0)
        train, test = self.read()
        return image_split(train, test, labels=self.labels, size=self.size, flip=self.flip, limit=self.limit)


class Lazy(Dataset):
    """Items in floating point, with their labels or without, decoded when they are asked for."""

    def __init__(self, items: Items, labels: bool) -> None:
        self.items, self.labels = items, labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        x, y = self.items[i]
        if not self.labels:
            return x.float()
        if y is None:
            raise ArgumentError(f"{self.items.name(i)} has no label, and labels are asked for")
        return x.float(), y

    def loader(self, workers: int) -> DataLoader:
        """In batches as large as the trainer's, decoded by so many processes."""
        return DataLoader(self, batch_size=None, num_workers=workers, collate_fn=default_collate)


def _held_out(images: Any) -> tuple[Any, Any]:
    """A fifth apart, the same whatever the seed."""
    n = length(images)
    if n < 2:
        raise ArgumentError(f"there are {n} images, expected one to train on and one to hold out at least")
    order = torch.randperm(n, generator=stream(0, "images-split"))
    held = max(1, round(HELD_OUT * n))
    return _rows(images, order[held:]), _rows(images, order[:held])


def _some(images: Any, limit: int | None, part: str) -> Any:
    n = length(images)
    if limit is None or limit >= n:
        return images
    return _rows(images, torch.randperm(n, generator=stream(0, f"images-{part}"))[:limit])


def _rows(images: Any, rows: Tensor) -> Any:
    if isinstance(images, Pictures):
        return Pictures(images.x[rows], None if images.y is None else images.y[rows])
    return Rows(images, rows.tolist())


def _in_memory(images: Any, size: int | None, channels: int | None) -> Pictures:
    if not isinstance(images, Pictures):
        return Items(images, size, channels).in_memory()
    n, c, h, w = images.x.shape
    check_room((n, channels or c, size or h, size or w), 4, "the data set")
    return images._replace(x=recoloured(images.x if size is None else fit(images.x, size), channels))


def _classes(lazy: Items | None, known: Pictures | None, held: Pictures, classes: int | None) -> int:
    """The number of classes, if every image that is in memory has a label."""
    if held.y is None or (known is not None and known.y is None):
        raise ArgumentError("labels are asked for, and the images have none")
    seen = [held.y] + ([known.y] if known is not None and known.y is not None else [])
    most = 1 + max(int(y.max()) for y in seen)
    if classes is None and lazy is not None:
        raise ArgumentError("classes is not given, and images that are not in memory cannot be counted")
    if classes is not None and most > classes:
        raise ArgumentError(f"labels go up to {most - 1}, and there are to be {classes} classes")
    return most if classes is None else classes
