"""Recipes: named configurations that run as they are. Every data set's name is one.

A recipe is a function without arguments that returns the plain data of a configuration; packages register theirs in
`fmkit.recipes`. A data set without a recipe of its own gets `standard`.
"""

from __future__ import annotations

from typing import Any

from fmkit import registry
from fmkit.errors import ConfigError, RegistryError, did_you_mean

RECIPES, DATASETS = "fmkit.recipes", "fmkit.datasets"


def digits() -> dict[str, Any]:
    """Handwritten digits: the main job, a few minutes on two cores."""
    return {
        "data": "digits",
        "path": "condot",
        "time": {"name": "logit-normal", "mean": 0.3, "std": 1.2},
        "field": {"name": "mlp", "width": 256, "depth": 3, "dropout": 0.2},
        "trainer": {
            "steps": 5000,
            "batch_size": 256,
            "lr": 2e-3,
            "warmup": 200,
            "decay": "cosine",
            "weight_decay": 1.0,  # 1,437 images: without it, and the dropout, the network learns them by heart
            "betas": [0.9, 0.99],
            "ema": 0.999,
            "clip": 1.0,
        },
    }


def standard(data: str) -> dict[str, Any]:
    """For points in a few dimensions: under a minute on two cores.

    Raises:
        RegistryError: if no such data set is installed.
    """
    registry.find(DATASETS, data)
    return {
        "data": data,
        "path": "condot",
        "field": {"name": "mlp", "width": 128, "depth": 3},
        "trainer": {"steps": 3000, "batch_size": 512, "lr": 1e-3, "warmup": 100, "decay": "cosine", "clip": 1.0},
    }


def names() -> list[str]:
    """Every recipe there is."""
    return sorted({e.name for group in (RECIPES, DATASETS) for e in registry.entries(group)})


def find(name: str) -> dict[str, Any]:
    """The configuration of a recipe.

    Raises:
        ConfigError: if there is none of that name, with the closest one.
        PluginLoadError: if the package behind it is broken.
    """
    if not isinstance(name, str):
        raise ConfigError(f"the recipe is {name!r}, expected text, as 'digits'", "train")
    if registry.find_or_none(RECIPES, name):
        return registry.load(RECIPES, name)()
    if registry.find_or_none(DATASETS, name):
        return standard(name)
    try:
        registry.find(DATASETS, name)
    except RegistryError as error:
        if "provided by" in str(error):
            raise
    raise ConfigError(f"{name!r} is neither a file nor a recipe{did_you_mean(name, names())}", "train")
