"""The least expected loss of an objective, what a perfect network's loss is; and how far above it a network is.

    least     E w(t) mean over the event of Var[target | x_t]
    excess    E w(t) mean over the event of |network(t, x_t) - E[target | x_t]|²

The two add up to the network's expected loss: Theorem 2 (Lipman et al., arXiv 2210.02747), whose constant
L_CFM - L_FM is the first, with the objective's weight in it. Given x_t both are exact; times (stratified) and points
are drawn, so the estimates have no bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_generator, check_instance
from fmkit.couplings import Independent
from fmkit.errors import CombinationError
from fmkit.fields import as_field, ask
from fmkit.objectives import Objective, Regression
from fmkit.oracle.law import Given, Law, Row
from fmkit.oracle.posterior import view_row
from fmkit.paths import AffinePath
from fmkit.sources import Source

# Draws come in blocks, each stratified in time; the standard error is that of the blocks' mean.
BLOCKS = 16

Measure = Callable[[Given, Row, Tensor, Tensor], Tensor]


class Estimate(NamedTuple):
    """A number estimated without bias: its `value`, and the `standard_error` of the estimate."""

    value: float
    standard_error: float


def loss_floor(
    law: Law,
    path: AffinePath,
    source: Source,
    objective: Objective,
    n: int,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The least expected loss on this path and data, over `n` draws, under the independent coupling.

    Args:
        law: of the data.
        path: an affine path.
        source: a Gaussian.
        objective: one of the regressions.
        n: draws, >= 2.
        generator: the only randomness there is.

    Raises:
        ArgumentError: if n is below 2.
        CombinationError: for an objective that is no regression, or has no meaning on this path and source.
    """

    def least(given: Given, row: Row, t: Tensor, x: Tensor) -> Tensor:
        return given.variance_of(row)

    return _mean(least, law, path, source, objective, n, generator)


def loss_excess(
    network: torch.nn.Module,
    law: Law,
    path: AffinePath,
    source: Source,
    objective: Objective,
    n: int,
    generator: torch.Generator | None = None,
    cond: Any = None,
) -> Estimate:
    """How far the network's expected loss is above the least; arguments and errors as of `loss_floor`.

    The network is asked in its own precision, without gradients, in the mode it is in; `cond` is the condition of all
    the law's data, a label or a tensor `(...)`.
    """
    check_instance("network", network, torch.nn.Module)
    field, given_cond = as_field(network), None if cond is None else torch.as_tensor(cond)
    weight = next(network.parameters(), torch.empty(0))
    dtype = weight.dtype if weight.is_floating_point() else torch.float32

    @torch.no_grad()
    def above(given: Given, row: Row, t: Tensor, x: Tensor) -> Tensor:
        shaped = x.reshape(-1, *law.event_shape).to(weight.device, dtype)
        each = None if given_cond is None else given_cond.to(weight.device).expand(len(x), *given_cond.shape)
        answer = ask(field, t.to(weight.device), shaped, each)
        return (answer.to(x).reshape(x.shape) - given.mean(row)).square().sum(1)

    return _mean(above, law, path, source, objective, n, generator)


def _mean(
    measure: Measure,
    law: Law,
    path: AffinePath,
    source: Any,
    objective: Objective,
    n: int,
    generator: torch.Generator | None,
) -> Estimate:
    """E w(t) measure/D, of a measure `(B,)` of points `(B, D)` at times `(B,)`, a view's row, and what they say."""
    n = check_count("n", n, 2)
    check_generator(generator)
    cls: Any = type(objective)
    if not isinstance(objective, Regression) or (cls.loss, cls.target) != (Regression.loss, Regression.target):
        raise CombinationError(f"{cls.__name__} is no regression of a view, so its floor is not known")
    objective.check(path, source, Independent())
    interval, drawn_on = objective.interval(path), law.device if generator is None else generator.device
    means = []
    for block in torch.arange(n).tensor_split(min(BLOCKS, n)):
        t = objective.time.sample(len(block), interval, generator=generator, device=law.device, stratified=True)
        x1 = law.sample(len(block), generator)
        x0 = source.sample(x1.shape, generator=generator, dtype=x1.dtype, device=drawn_on).to(x1.device)
        x = path.sample(t, x0, x1, generator=generator).x.reshape(len(block), -1)
        pieces = []
        for t_piece, x_piece in zip(t.split(law.rows), x.split(law.rows), strict=True):
            given = law.given(source, Row.of(path.coefficients(t_piece)), x_piece)
            pieces.append(measure(given, view_row(path, objective.view, t_piece), t_piece, x_piece))
        value, weight = torch.cat(pieces) / x.shape[1], objective.weight(path, t)
        means.append((value if weight is None else value * weight).mean())
    blocks = torch.stack(means)
    return Estimate(blocks.mean().item(), (blocks.std() / math.sqrt(len(blocks))).item())
