"""Data sets, real and toy, and the records that training takes."""

from fmkit.data.base import Data, DataSet, Split
from fmkit.data.digits import Digits, dequantize

__all__ = ["Data", "DataSet", "Digits", "Split", "dequantize"]
