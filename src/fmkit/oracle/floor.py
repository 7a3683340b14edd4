"""The least expected loss of an objective: what a perfect network's loss is.

    E w(t) mean over the event of Var[target | x_t]

Theorem 2's constant (Lipman et al., arXiv 2210.02747), L_CFM - L_FM, with the objective's weight in it.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from fmkit.couplings import Independent
from fmkit.errors import ArgumentError, CombinationError
from fmkit.objectives import Objective, Regression
from fmkit.oracle import posterior
from fmkit.oracle.mixture import Mixture
from fmkit.paths import AffinePath
from fmkit.sources import Gaussian


class Floor(NamedTuple):
    """The least expected loss, estimated without bias: `value`, and the `standard_error` of the estimate."""

    value: float
    standard_error: float


def loss_floor(
    mixture: Mixture,
    path: AffinePath,
    source: Gaussian,
    objective: Objective,
    n: int,
    generator: torch.Generator | None = None,
) -> Floor:
    """The floor on this path and data, over `n` draws; arguments and errors are those of `MixtureOracle.loss_floor`."""
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 2:
        raise ArgumentError(f"n is {n!r}, expected a number of draws of at least 2")
    if not isinstance(objective, Regression):
        raise CombinationError(f"{type(objective).__name__} is no regression of a view, so its floor is not known")
    objective.check(path, source, Independent())
    device, dtype = mixture.means.device, mixture.means.dtype
    t = objective.time.sample(int(n), objective.interval(path), generator=generator, device=device)
    x1 = mixture.sample(n, generator)
    drawn_on = device if generator is None else generator.device
    x0 = source.sample(x1.shape, generator=generator, dtype=dtype, device=drawn_on).to(device)
    x = path.sample(t, x0, x1, generator=generator).x
    rows = max(1, posterior.CHUNK_ELEMENTS // mixture.means.numel())
    pieces = [
        _variance(mixture, path, source, objective.view, *at)
        for at in zip(t.split(rows), x.reshape(n, -1).split(rows), strict=True)
    ]
    value, weight = torch.cat(pieces) / mixture.dim, objective.weight(path, t)
    value = value if weight is None else value * weight
    return Floor(value.mean().item(), (value.std() / math.sqrt(n)).item())


def _variance(mixture: Mixture, path: AffinePath, source: Gaussian, view: str, t: Tensor, x: Tensor) -> Tensor:
    """The trace of Cov[view | x_t = x], `(B,)`, at points x `(B, D)`."""
    given = posterior.Posterior(mixture, source, posterior.Row.of(path.coefficients(t)), x)
    return given.variance_of(posterior.view_row(path, view, t))
