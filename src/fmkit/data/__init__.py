"""Data sets, real and toy, and the records that training takes."""

from fmkit.data.base import Data, DataSet, Split, Stratum
from fmkit.data.boards import Checkerboard, Pinwheel
from fmkit.data.curves import Moons, Rings, SCurve
from fmkit.data.digits import Digits, dequantize
from fmkit.data.gaussians import EightGaussians, GaussianMixture
from fmkit.data.tabular import Tabular
from fmkit.data.toy import Toy

__all__ = [
    "Checkerboard",
    "Data",
    "DataSet",
    "Digits",
    "EightGaussians",
    "GaussianMixture",
    "Moons",
    "Pinwheel",
    "Rings",
    "SCurve",
    "Split",
    "Stratum",
    "Tabular",
    "Toy",
    "dequantize",
]
