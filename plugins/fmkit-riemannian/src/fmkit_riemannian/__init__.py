"""Riemannian flow matching for fmkit (Chen & Lipman, arXiv 2302.03660): the sphere and the flat torus."""

from fmkit_riemannian.data import SphereMixture, TorusMixture
from fmkit_riemannian.fields import TangentField
from fmkit_riemannian.manifolds import Manifold, Sphere, Torus
from fmkit_riemannian.paths import GeodesicPath
from fmkit_riemannian.solvers import GeodesicEuler, GeodesicMidpoint, GeodesicRK4, GeodesicRungeKutta
from fmkit_riemannian.sources import ManifoldUniform

__all__ = [
    "GeodesicEuler",
    "GeodesicMidpoint",
    "GeodesicPath",
    "GeodesicRK4",
    "GeodesicRungeKutta",
    "Manifold",
    "ManifoldUniform",
    "Sphere",
    "SphereMixture",
    "TangentField",
    "Torus",
    "TorusMixture",
]
