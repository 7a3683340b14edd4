"""The densities a user would fit otherwise, by scikit-learn: what a flow on small images has to beat."""

from __future__ import annotations

import math

import numpy as np
import torch

from fmkit.arguments import check_instance
from fmkit.data import Split
from fmkit.errors import ArgumentError
from fmkit.randomness import stream, stream_seed

MIXTURES = {
    "one full Gaussian": (1, "full"),
    "ten full Gaussians": (10, "full"),
    "thirty diagonal Gaussians": (30, "diag"),
}
REGULARIZATIONS = (1e-6, 1e-2, 1e-1)
BANDWIDTHS = (1.0, 1.25, 1.5, 1.75, 2.0)
# Of a sample, and of all training samples: half a minute of one core. 60,000 images of 14x14 took over ten minutes.
QUICK, QUICK_IN_ALL = 256, 2**20


def are_quick(split: Split) -> bool:
    """Whether the baselines of this data are a matter of seconds: of larger images they also say little."""
    x = split.train.x
    return isinstance(x, torch.Tensor) and math.prod(split.event_shape) <= QUICK and x.numel() <= QUICK_IN_ALL


def bits_per_dim(split: Split, seed: int = 0) -> dict[str, float]:
    """Held-out bits per dimension of each baseline, on uniformly dequantized integer images.

    Mixtures of more Gaussians than there are training images are left out.

    Each is given its best regularization or bandwidth on the held-out images themselves, so the comparison errs in
    its favour.

    Args:
        split: integer images (with `levels`).
        seed: of the dequantization and the mixtures' beginnings.

    Raises:
        ArgumentError: for data without grey levels, or if scikit-learn is not installed.
    """
    if check_instance("split", split, Split).levels is None:
        raise ArgumentError("bits per dimension are for integer images; this data has no grey levels")
    try:
        from sklearn.mixture import GaussianMixture
        from sklearn.neighbors import KernelDensity
    except ImportError as error:
        raise ArgumentError("the comparison needs scikit-learn: pip install 'fmkit[data]'") from error
    train, test = (_dequantized(x, seed, name) for x, name in ((split.train.x, "train"), (split.test, "test")))

    def bits(model) -> float:
        return float(-model.fit(train).score_samples(test).mean() / (test.shape[1] * math.log(2)))

    state = stream_seed(seed, "baselines")
    scores = {
        name: min(
            bits(GaussianMixture(k, covariance_type=shape, reg_covar=r, random_state=state)) for r in REGULARIZATIONS
        )
        for name, (k, shape) in MIXTURES.items()
        if k <= len(train)
    }
    scores["kernel density"] = min(bits(KernelDensity(bandwidth=h)) for h in BANDWIDTHS)
    return scores


def _dequantized(x: torch.Tensor, seed: int, name: str) -> np.ndarray:
    noise = torch.rand(x.shape, generator=stream(seed, f"baselines-{name}"), dtype=torch.float64)
    return (x.double() + noise).flatten(1).numpy()
