"""Data sets, real and toy, and the records that training takes."""

from fmkit.data.base import Data, DataSet, Split, Stratum
from fmkit.data.boards import Checkerboard, Pinwheel
from fmkit.data.curves import Moons, Rings, SCurve
from fmkit.data.degraded import Degraded
from fmkit.data.digits import Digits
from fmkit.data.gaussians import EightGaussians, GaussianMixture
from fmkit.data.idx import FashionMNIST, Idx, MNIST5k, read_idx
from fmkit.data.image_files import ImageArrays, ImageFolder
from fmkit.data.images import ImageSet, image_split
from fmkit.data.items import Pictures
from fmkit.data.pixels import InTurn, box_downsample, center_crop, dequantize, fit, flip, resize
from fmkit.data.super_resolution import SuperResolution
from fmkit.data.tabular import Tabular
from fmkit.data.toy import Toy

__all__ = [
    "Checkerboard",
    "Data",
    "DataSet",
    "Degraded",
    "Digits",
    "EightGaussians",
    "FashionMNIST",
    "GaussianMixture",
    "Idx",
    "ImageArrays",
    "ImageFolder",
    "ImageSet",
    "InTurn",
    "MNIST5k",
    "Moons",
    "Pictures",
    "Pinwheel",
    "Rings",
    "SCurve",
    "Split",
    "Stratum",
    "SuperResolution",
    "Tabular",
    "Toy",
    "box_downsample",
    "center_crop",
    "dequantize",
    "fit",
    "flip",
    "image_split",
    "read_idx",
    "resize",
]
