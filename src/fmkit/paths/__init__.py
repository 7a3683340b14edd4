"""Probability paths: how a source sample becomes a data sample."""

from fmkit.paths.affine import AffinePath, Coefficients
from fmkit.paths.base import PathSample, ProbabilityPath
from fmkit.paths.bridge import ICFM, SchrodingerBridge
from fmkit.paths.diffusion import Cosine, LinearVP, VarianceExploding, VariancePreserving
from fmkit.paths.gaussian import GaussianPath
from fmkit.paths.transport import CondOT, Polynomial

__all__ = [
    "ICFM",
    "AffinePath",
    "Coefficients",
    "CondOT",
    "Cosine",
    "GaussianPath",
    "LinearVP",
    "PathSample",
    "Polynomial",
    "ProbabilityPath",
    "SchrodingerBridge",
    "VarianceExploding",
    "VariancePreserving",
]
