"""Metrics: samples in, numbers out."""

from fmkit.metrics.base import Metric
from fmkit.metrics.cache import cache_folder
from fmkit.metrics.couplings import CouplingDiagnostics, coupling_diagnostics
from fmkit.metrics.energy import PathEnergy, normalized_path_energy, path_energy
from fmkit.metrics.extractors import FeatureExtractor
from fmkit.metrics.features import Classifier, ClassifierSettings, classifier
from fmkit.metrics.frechet import Frechet, frechet_distance
from fmkit.metrics.image_sets import (
    ImageSet,
    image_distances,
    kernel_inception_distance,
    precision_recall,
)
from fmkit.metrics.inception import Inception
from fmkit.metrics.kernels import MMD, EnergyDistance
from fmkit.metrics.likelihood import NegativeLogLikelihood, bits_per_dim, bits_per_dim_with_error, nll
from fmkit.metrics.moments import Moments, moments_distance
from fmkit.metrics.references import reference_set
from fmkit.metrics.restoration import bicubic, consistency, psnr, ssim
from fmkit.metrics.transport import SlicedWasserstein, Wasserstein, sliced_wasserstein, wasserstein_1d

__all__ = [
    "MMD",
    "Classifier",
    "ClassifierSettings",
    "CouplingDiagnostics",
    "EnergyDistance",
    "FeatureExtractor",
    "Frechet",
    "ImageSet",
    "Inception",
    "Metric",
    "Moments",
    "NegativeLogLikelihood",
    "PathEnergy",
    "SlicedWasserstein",
    "Wasserstein",
    "bicubic",
    "bits_per_dim",
    "bits_per_dim_with_error",
    "cache_folder",
    "classifier",
    "consistency",
    "coupling_diagnostics",
    "frechet_distance",
    "image_distances",
    "kernel_inception_distance",
    "moments_distance",
    "nll",
    "normalized_path_energy",
    "path_energy",
    "precision_recall",
    "psnr",
    "reference_set",
    "sliced_wasserstein",
    "ssim",
    "wasserstein_1d",
]
