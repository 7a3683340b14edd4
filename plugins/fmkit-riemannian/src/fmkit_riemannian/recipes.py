"""Recipes: what `fmkit train sphere-mixture` and `fmkit train torus-mixture` run."""

from __future__ import annotations

from typing import Any


def sphere_mixture() -> dict[str, Any]:
    """Six bumps on the sphere, about half a minute on two cores."""
    return _recipe("sphere-mixture", "sphere", ambient=3)


def torus_mixture() -> dict[str, Any]:
    """Three bumps on the torus of two angles, about half a minute on two cores."""
    return _recipe("torus-mixture", "torus", ambient=4)


def _recipe(data: str, manifold: str, ambient: int) -> dict[str, Any]:
    network = {"name": "mlp", "event_shape": ambient, "width": 128, "depth": 2}
    return {
        "data": data,
        "path": {"name": "geodesic", "manifold": manifold},
        "source": {"name": "manifold-uniform", "manifold": manifold},
        "field": {"name": "tangent", "manifold": manifold, "network": network},
        "solver": {"name": "geodesic-midpoint", "manifold": manifold, "steps": 40},
        "trainer": {"steps": 2000, "batch_size": 256, "lr": 2e-3, "decay": "cosine", "clip": 1.0},
    }
