"""Images in files: folders of them, and arrays in a .npz file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmkit.arguments import check_count, check_instance, shown
from fmkit.data.base import DataSet, Split
from fmkit.data.images import ImageSet, image_split
from fmkit.data.items import Pictures, check_room, found
from fmkit.errors import ArgumentError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolder(DataSet):
    """Image files in a folder, all in it or one class in each of its folders; perhaps apart in `train` and `test`.

    Where the folder has one called `train`, held-out images are those in `test` (or `val`), else a fifth of all. Needs
    Pillow: `pip install 'fmkit[images]'`.

    Args:
        folder: the path; `~` is the home directory.
        labels: the class as a condition, numbered in the order of the folders' names.
        size: side of the images, cropped to a square and resized (see `fit`); as they are by default, if all are equal.
        flip: mirror images, left for right, half of the time while training.
        limit: at most so many images of each part, drawn once for all.
        channels: 1 for grey, 3 for colour; those of the first image by default.
        workers: do not hold the training images in memory, but let so many processes decode them when they are due (0:
            the process that trains).

    Raises:
        ArgumentError: for numbers out of range, or no folder; from `load`, for a folder without images, and for an
            image that is damaged or unlike the first, by its path.
    """

    def __init__(
        self,
        folder: str,
        labels: bool = False,
        size: int | None = None,
        flip: bool = False,
        limit: int | None = None,
        channels: int | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.labels, self.flip = check_instance("folder", folder, str), labels, flip
        self.size = None if size is None else check_count("size", size)
        self.limit = None if limit is None else check_count("limit", limit)
        self.workers = None if workers is None else check_count("workers", workers, least=0)
        if channels not in (None, 1, 3):
            raise ArgumentError(f"channels is {shown(channels)}, expected 1 for grey or 3 for colour")
        self.channels = channels
        found(folder, folder=True)

    def load(self, seed: int = 0) -> Split:
        check_count("seed", seed, least=0)
        root = found(self.folder, folder=True)
        train, test = Files(root / "train" if (root / "train").is_dir() else root), None
        if (root / "train").is_dir():
            test = next((Files(root / name) for name in ("test", "val") if (root / name).is_dir()), None)
        if test is not None and test.classes != train.classes:
            raise ArgumentError(f"{root} has classes {train.classes} to train on, and {test.classes} held out")
        if self.labels and train.classes is None:
            raise ArgumentError(f"{root} holds its images in no folders, which labels would be the names of")
        return image_split(
            train,
            test,
            labels=self.labels,
            size=self.size,
            flip=self.flip,
            limit=self.limit,
            channels=self.channels,
            classes=None if train.classes is None else len(train.classes),
            workers=self.workers,
        )


class Files:
    """The images in a folder: all in it, or one class in each of its folders, in the order of their names.

    Attributes:
        classes: the names of the classes, or None for a flat folder.

    Raises:
        ArgumentError: if there are none, images beside folders of images, or Pillow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise ArgumentError("image files need Pillow: pip install 'fmkit[images]'") from error
        flat = _images_in(folder)
        folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        inner = {p.name: _images_in(p) for p in folders}
        if flat and any(inner.values()):
            raise ArgumentError(f"{folder} has images beside folders of images, expected one or the other")
        if not flat and not any(inner.values()):
            raise ArgumentError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}), nor folders of any")
        if empty := [name for name, files in inner.items() if not files and not flat]:
            raise ArgumentError(f"{folder / empty[0]} holds no images, beside folders that do")
        self.classes = None if flat else list(inner)
        self.files = flat or [file for files in inner.values() for file in files]
        self.labels = None if flat else [k for k, files in enumerate(inner.values()) for _ in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        from PIL import Image, ImageOps

        with Image.open(self.files[i]) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ArgumentError(f"it has {image.width}x{image.height} pixels, more than Pillow takes for an image")
            turned = ImageOps.exif_transpose(image)
            turned.load()
        return turned if self.labels is None else (turned, self.labels[i])

    def name(self, i: int) -> str:
        """The file's path."""
        return str(self.files[i])


def _images_in(folder: Path) -> list[Path]:
    hidden = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in hidden if p.suffix.lower() in SUFFIXES)


class ImageArrays(ImageSet):
    """Images in arrays of a .npz file: (N, H, W), (N, H, W, C) or (N, C, H, W) of integers 0 .. 255.

    The arrays are called x_train, y_train, x_test, y_test (as Keras has them), or train_images, train_labels,
    test_images, test_labels (as MedMNIST), or images and labels, or x and y; without held-out ones a fifth is held out.

    Args:
        file: the path; `~` is the home directory.
        labels: the class as a condition.
        size: side of the images, cropped to a square and resized (see `fit`); as they are by default.
        flip: mirror images, left for right, half of the time while training.
        limit: at most so many images of each part, drawn once for all.

    Raises:
        ArgumentError: for numbers out of range, or no file; from `load`, for arrays that are missing or no images.
    """

    names = (
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("images", "labels"),
        ("x", "y"),
    )

    def __init__(
        self,
        file: str,
        labels: bool = False,
        size: int | None = None,
        flip: bool = False,
        limit: int | None = None,
    ) -> None:
        super().__init__(labels, size, flip, limit)
        self.file = check_instance("file", file, str)
        found(file)

    def read(self) -> tuple[Pictures, Pictures | None]:
        path = found(self.file)
        try:
            with zipfile.ZipFile(path) as archive:
                sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
            chosen = next((names for names in self.names if names[0] in sizes), None)
            if chosen is None:
                raise ArgumentError(
                    f"{path} has arrays {', '.join(sizes)}, expected images called "
                    f"{' or '.join(names[0] for names in self.names)}"
                )
            check_room((sum(sizes[name] for name in chosen if name in sizes),), 1, str(path))
            with np.load(path, allow_pickle=False) as arrays:
                at = {name: arrays[name] for name in chosen if name in sizes}
        except ArgumentError:
            raise
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ArgumentError(f"{path} cannot be read: {error}") from error
        parts = [self._pictures(at, *chosen[k : k + 2]) for k in range(0, len(chosen), 2) if chosen[k] in at]
        return parts[0], parts[1] if len(parts) > 1 else None

    def _pictures(self, at: dict[str, np.ndarray], images: str, labels: str) -> Pictures:
        where, x, y = f"{self.file}[{images}]", at[images], at.get(labels)
        if x.dtype.kind not in "iu" or x.ndim not in (3, 4) or x.size == 0 or x.min() < 0 or x.max() > 255:
            raise ArgumentError(f"{where} is {x.dtype} of shape {x.shape}, expected images of integers 0 .. 255")
        bytes_ = torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8))
        if x.ndim == 3:
            bytes_ = bytes_[:, None]
        elif x.shape[3] in (1, 3):
            bytes_ = bytes_.permute(0, 3, 1, 2)
        elif x.shape[1] not in (1, 3):
            raise ArgumentError(f"{where} has shape {x.shape}, expected 1 or 3 channels, last or second")
        if y is None:
            return Pictures(bytes_)
        if y.dtype.kind not in "iu" or y.size != len(x) or y.min() < 0:
            raise ArgumentError(f"{self.file}[{labels}] is {y.dtype} of shape {y.shape}, expected {len(x)} labels")
        return Pictures(bytes_, torch.from_numpy(y.astype(np.int64).reshape(-1)))
