"""Data sets, real and toy, and the records that training takes."""

from fmkit.data.base import Data, DataSet, Split
from fmkit.data.digits import Digits, dequantize
from fmkit.data.tabular import Tabular
from fmkit.data.toy import (
    Checkerboard,
    EightGaussians,
    GaussianMixture,
    Moons,
    Pinwheel,
    Rings,
    SCurve,
    Toy,
)

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
    "Tabular",
    "Toy",
    "dequantize",
]
