"""Metrics: samples in, numbers out."""

from fmkit.metrics.base import Metric
from fmkit.metrics.couplings import CouplingDiagnostics, coupling_diagnostics
from fmkit.metrics.energy import PathEnergy, normalized_path_energy, path_energy
from fmkit.metrics.frechet import Frechet, frechet_distance
from fmkit.metrics.kernels import MMD, EnergyDistance
from fmkit.metrics.likelihood import NegativeLogLikelihood, bits_per_dim, bits_per_dim_with_error, nll
from fmkit.metrics.transport import SlicedWasserstein, Wasserstein, sliced_wasserstein, wasserstein_1d

__all__ = [
    "MMD",
    "CouplingDiagnostics",
    "EnergyDistance",
    "Frechet",
    "Metric",
    "NegativeLogLikelihood",
    "PathEnergy",
    "SlicedWasserstein",
    "Wasserstein",
    "bits_per_dim",
    "bits_per_dim_with_error",
    "coupling_diagnostics",
    "frechet_distance",
    "nll",
    "normalized_path_energy",
    "path_energy",
    "sliced_wasserstein",
    "wasserstein_1d",
]
