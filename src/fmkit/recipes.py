"""Recipes: named configurations that run as they are. Every data set's name is one.

A recipe is a function without arguments that returns the plain data of a configuration; packages register theirs in
`fmkit.recipes`. A data set without a recipe of its own gets `standard`.
"""

from __future__ import annotations

from typing import Any

from fmkit import registry
from fmkit.errors import ConfigError, RegistryError, did_you_mean

RECIPES, DATASETS = "fmkit.recipes", "fmkit.datasets"
ROUGH = {"name": "dopri5", "rtol": 1e-3, "atol": 1e-3}  # grey levels are far apart


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


def digits_classes() -> dict[str, Any]:
    """Handwritten digits as images, each by its label: a small UNet that guidance works on, minutes on two cores."""
    return _classes({"name": "digits", "flat": False}, "tiny", steps=2000, lr=1e-3)


def mnist_5k() -> dict[str, Any]:
    """5,000 of MNIST's digits by their label: minutes on a GPU, an hour or two on two cores."""
    return _classes({"name": "mnist-5k"}, "tiny", steps=4000, lr=1e-3)


def fashion_mnist() -> dict[str, Any]:
    """Fashion-MNIST by its classes: for a GPU."""
    return _classes({"name": "fashion-mnist"}, "small", steps=20_000, lr=5e-4)


def _classes(data: dict[str, Any], preset: str, steps: int, lr: float) -> dict[str, Any]:
    """Labelled images, a UNet, and a share of labels dropped, so that it may be guided."""
    return {
        "data": {**data, "labels": True},
        "path": "condot",
        "field": {"name": "unet", "preset": preset, "cond_dropout": 0.1},
        "trainer": {
            "steps": steps,
            "batch_size": 128,
            "lr": lr,
            "warmup": steps // 20,
            "decay": "cosine",
            "ema": 0.999,
            "clip": 1.0,
        },
    }


def super_resolution() -> dict[str, Any]:
    """MNIST's digits from 7x7 pixels to 28x28, by a flow whose condition is the low resolution."""
    return {
        "data": {"name": "super-resolution", "data": {"name": "mnist-5k"}, "factor": 4},
        "path": "condot",
        "field": {"name": "unet", "preset": "tiny", "channels": 16, "channel_mult": [1, 2, 4], "channels_last": True},
        "solver": ROUGH,
        "trainer": {
            "steps": 3000,
            "batch_size": 32,
            "lr": 2e-3,
            "warmup": 100,
            "decay": "cosine",
            "ema": 0.999,
            "clip": 1.0,
        },
    }


def super_resolution_regression() -> dict[str, Any]:
    """The baseline of `super_resolution`: the same network, trained to answer with the mean image."""
    return _regression(super_resolution(), steps=1500)


def inpainting() -> dict[str, Any]:
    """The lower half of MNIST's digits from their upper half, by a flow that begins with that and some noise."""
    return {
        "data": {"name": "degraded", "data": {"name": "mnist-5k", "size": 14}, "hidden": 0.5},
        "source": {"name": "conditioned", "std": 0.5},
        "coupling": "pairs",
        "path": "condot",
        "field": {"name": "unet", "preset": "tiny", "channels": 16},
        "solver": ROUGH,
        "trainer": {
            "steps": 2000,
            "batch_size": 64,
            "lr": 2e-3,
            "warmup": 100,
            "decay": "cosine",
            "ema": 0.999,
            "clip": 1.0,
        },
    }


def inpainting_regression() -> dict[str, Any]:
    """The baseline of `inpainting`: the same network, trained to answer with the mean image."""
    return {**_regression(inpainting(), steps=500), "source": {"name": "conditioned", "std": 0.0}}


def _regression(made: dict[str, Any], steps: int) -> dict[str, Any]:
    """Data prediction at t = 0, where x0 says no more than the condition: one Euler step goes to what is predicted.

    It needs fewer steps than the flow, and with as many it learns the images by heart: the held-out loss rises again.
    """
    at_zero = {"name": "logit-normal", "mean": -40.0, "std": 1e-3}  # t = 4e-18
    trainer = {**made["trainer"], "steps": steps}
    return {**made, "time": at_zero, "objective": "data", "solver": {"name": "euler", "steps": 1}, "trainer": trainer}


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
