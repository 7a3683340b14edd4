"""Images one by one, from wherever they come: each becomes `(C, H, W)` bytes, or is named with what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fmkit.arguments import shown
from fmkit.data.pixels import fit
from fmkit.errors import ArgumentError

MOST_BYTES = 8 * 2**30  # of images in memory, in float32
IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")


class Pictures(NamedTuple):
    """Images in memory.

    Attributes:
        x: `(N, C, H, W)` bytes.
        y: `(N,)` labels 0, 1, ..., or None.
    """

    x: Tensor
    y: Tensor | None = None


class Items(Dataset):
    """A sequence of images as bytes of one shape, with labels where there are any.

    Args:
        source: has `len` and items: an image, (image, label), or a mapping with both. An image is Pillow's, or an array
            or tensor (H, W), (H, W, C) or (C, H, W) of integers 0 .. 255, or of these divided by 255. Where it has a
            method `name`, that says what to call its i-th image.
        size: side they are made to fit; as they are by default.
        channels: 1 for grey, 3 for colour; those of the first image by default.
    """

    def __init__(self, source: Any, size: int | None = None, channels: int | None = None) -> None:
        if channels not in (None, 1, 3):
            raise ArgumentError(f"channels is {channels!r}, expected 1 for grey or 3 for colour")
        if length(source) == 0:
            raise ArgumentError("there are no images, expected at least one")
        if size is not None:
            check_room((channels or 3, size, size), 4, "an image")
        self.source, self.size, self.channels = source, size, channels
        self.shape: tuple[int, ...] | None = None
        self.shape = tuple(self[0][0].shape)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        """Bytes `(C, H, W)` and the label, or None.

        Raises:
            ArgumentError: if the i-th image is none, naming it.
        """
        try:
            image, label = taken_apart(self.source[i])
            x = pixels_of(image, self.channels)
            x = x if self.size is None else fit(x[None], self.size)[0]
        except Exception as error:  # whatever its library raises: what matters is which image it was
            raise ArgumentError(f"{self.name(i)} cannot be read: {error}") from error
        if self.shape is not None and tuple(x.shape) != self.shape:
            raise ArgumentError(
                f"{self.name(i)} is {_said(x.shape)}, and {self.name(0)} {_said(self.shape)}; "
                "size=... makes them equal in size, channels=... in channels"
            )
        return x, label

    def name(self, i: int) -> str:
        """What to call the i-th image in a message."""
        name = getattr(self.source, "name", None)
        return name(i) if callable(name) else f"image {i}"

    def in_memory(self) -> Pictures:
        """All of them.

        Raises:
            ArgumentError: for more than memory should hold, before it is taken; where some have labels and some none.
        """
        assert self.shape is not None  # it was set when it was made
        check_room((len(self), *self.shape), 4, "the data set")
        x, labels = torch.empty((len(self), *self.shape), dtype=torch.uint8), []
        for i in range(len(self)):
            x[i], label = self[i]
            labels.append(label)
        if all(label is None for label in labels):
            return Pictures(x)
        if any(label is None for label in labels):
            raise ArgumentError(f"{self.name(labels.index(None))} has no label, and others have")
        return Pictures(x, torch.tensor(labels))


class Rows:
    """Some of the items of a sequence, which keep their names."""

    def __init__(self, source: Any, rows: Sequence[int]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.source[self.rows[i]]

    def name(self, i: int) -> str:
        """That of the item in the sequence."""
        name = getattr(self.source, "name", None)
        return name(self.rows[i]) if callable(name) else f"image {self.rows[i]}"


def length(images: Any) -> int:
    """How many there are; an ArgumentError for what is no sequence of images."""
    if isinstance(images, Pictures):
        return len(images.x)
    if isinstance(images, str) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise ArgumentError(f"images are {shown(images)}, expected a data set or a list of images")
    return len(images)


def taken_apart(item: Any) -> tuple[Any, int | None]:
    """Image and label of an item.

    Raises:
        ArgumentError: if it has no image, or a label that is no whole number >= 0.
    """
    label: Any = None
    if isinstance(item, Mapping):
        image, label = (
            next((item[k] for k in keys if item.get(k) is not None), None) for keys in (IMAGE_KEYS, LABEL_KEYS)
        )
        if image is None:
            raise ArgumentError(f"it has {', '.join(map(str, item))}, expected one of {', '.join(IMAGE_KEYS)}")
    elif isinstance(item, list | tuple):
        image, label = (item[0], item[1]) if len(item) == 2 else (item[0] if len(item) == 1 else None, None)
        if image is None:
            raise ArgumentError(f"it has {len(item)} entries, expected (image, label)")
    else:
        image = item
    if label is None:
        return image, None
    number = np.asarray(label)
    if number.ndim or number.dtype.kind not in "iu" or number < 0:
        raise ArgumentError(f"its label is {shown(label)}, expected a whole number of at least 0")
    return image, int(number)


def pixels_of(image: Any, channels: int | None = None) -> Tensor:
    """An image as `(C, H, W)` bytes.

    Raises:
        ArgumentError: if it is none, or not of 8 bits.
    """
    if hasattr(image, "convert") and hasattr(image, "mode"):  # Pillow's
        if image.mode.startswith(("I", "F")):
            raise ArgumentError(f"it has Pillow's mode {image.mode!r}, expected 8 bits a channel")
        grey = image.mode in ("1", "L", "LA") if channels is None else channels == 1
        image = np.array(image.convert("L" if grey else "RGB"))
    return recoloured(bytes_of(image), channels)


def bytes_of(values: Any) -> Tensor:
    """`(C, H, W)` bytes from an array or tensor (H, W), (H, W, C) or (C, H, W); errors as of `pixels_of`."""
    if not isinstance(values, Tensor | np.ndarray):
        raise ArgumentError(f"it is {shown(values)}, expected an image, an array or a tensor")
    x = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values.detach().cpu()
    if x.ndim not in (2, 3) or x.numel() == 0 or x.is_complex() or x.dtype == torch.bool:
        raise ArgumentError(f"it is {x.dtype} of shape {tuple(x.shape)}, expected (H, W), (H, W, C) or (C, H, W)")
    if x.is_floating_point():
        levels = (x * 255).round()
        if not bool(((x * 255 - levels).abs() < 1e-2).all()):
            raise ArgumentError("it holds numbers that are no grey levels k/255; hand the images over as they are")
        x = levels
    low, high = (v.item() for v in torch.aminmax(x))
    if low < 0 or high > 255:
        raise ArgumentError(f"its grey levels range over {low:g} .. {high:g}, expected 0 .. 255")
    x = x.to(torch.uint8)
    if x.ndim == 2:
        return x[None]
    if x.shape[2] in (1, 3):
        return x.permute(2, 0, 1)
    if x.shape[0] in (1, 3):
        return x
    raise ArgumentError(f"it has shape {tuple(x.shape)}, expected 1 or 3 channels, first or last")


def recoloured(x: Tensor, channels: int | None) -> Tensor:
    """Grey `(..., C, H, W)` in three channels, or colour as its luma (ITU-R 601, as Pillow has it), where asked for."""
    if channels is None or x.shape[-3] == channels:
        return x
    if channels == 3:
        return x.expand(*x.shape[:-3], 3, *x.shape[-2:])
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return ((x.float() * weights).sum(-3, keepdim=True) + 0.5).floor().to(x.dtype)


def check_room(shape: Sequence[int], itemsize: int, name: str) -> None:
    """Refuse what memory should not hold, before it is taken."""
    if (need := math.prod(shape) * itemsize) > MOST_BYTES:
        raise ArgumentError(
            f"{name} holds {' x '.join(map(str, shape))} numbers, which take {need / 2**30:.1f} GiB of memory; "
            f"at most {MOST_BYTES // 2**30} are taken: make the images smaller (size), take fewer (limit), or decode "
            "them when they are due (workers)"
        )


def found(path: str | Path, folder: bool = False, hint: str = "") -> Path:
    """The path of a file or folder that is there; otherwise an ArgumentError."""
    what = "folder" if folder else "file"
    try:
        place = Path(path).expanduser()
        there = place.is_dir() if folder else place.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file system allows, or nobody's home
        raise ArgumentError(f"{path!r} is no name of a {what}: {error}") from None
    if not there:
        raise ArgumentError(f"there is no {what} at {path}; looked for {place.absolute()}{hint}")
    return place


def _said(shape: Sequence[int]) -> str:
    c, h, w = shape
    return f"{h}x{w} in {c} channel{'s' if c > 1 else ''}"
