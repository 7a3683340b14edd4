"""Semidiscrete optimal transport: from the source's law itself to the whole data set, without a batch between them.

    x0 meets the x1_j of least |x0 - x1_j|² - g_j,     g = argmax E[min_j |x0 - x1_j|² - g_j] + mean(g)

(Mousavi-Hosseini et al., arXiv 2509.25519; Genevay et al., arXiv 1605.08527). One dual number g_j for each sample
decides its cell, the part of the source that travels to it; at the optimum every cell has the mass 1/N, and the map is
the optimal one. The gradient of the dual is 1/N less the cell's mass, which a batch of fresh x0 estimates. The
potentials are fitted once, from those of a discrete problem onwards, and saved with the run; then a fresh x0 finds its
partner by one search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_generator, check_instance
from fmkit.couplings.assignment import CAREFUL, potentials, squared_distances
from fmkit.couplings.base import Coupling, check_conditions, resize
from fmkit.couplings.nearest import Cells
from fmkit.errors import ArgumentError, CombinationError
from fmkit.randomness import stream
from fmkit.shapes import check_batch
from fmkit.sources import Source

# Entries of the cost between fresh x0 and the data that the discrete problem at the start may have.
START = 2**24
# Fresh x0 a step: two for each sample within these bounds.
LEAST, MOST = 1024, 2**15
# Step k of n is as long as (1 + DECAY k / n)^-POWER tells; the average is taken from AVERAGED n on.
DECAY, POWER = 20, 2 / 3
AVERAGED = 0.25
# What is as long as the data, or not there yet.
BY_SAMPLE = ("potentials", "_current", "_unit", "_mark")
# Batches of fresh x0 that the fitted masses are estimated from.
CHECKED = 20


class Semidiscrete(Coupling):
    """The optimal pairing of fresh source samples with the whole data set, fitted before training.

    It is shown all of the data, not a batch: row k of x0 meets row i1[k] of the data. Every sample is met equally
    often, as far as `marginal_error` tells. Labels follow their samples; given a label, x0 is what travels there.

    Args:
        steps: of the fit, by stochastic gradients with averaging.

    Attributes:
        potentials: `(N,)` the dual numbers g, of mean 0, in units of squared distance.
        done: steps of the fit that lie behind; a fit that was cut off goes on from here.
        marginal_error: how far the cells' masses p_j are from 1/N once the fit is done: sqrt(N sum_j (p_j - 1/N)²), the
            relative error of a typical mass. The square is estimated without bias from fresh x0, and may be 0.

    Examples:
        >>> import torch, fmkit
        >>> from fmkit.couplings import Semidiscrete
        >>> x1 = torch.tensor([[-3.0], [0.0], [1.0]])
        >>> coupling = Semidiscrete(steps=200)
        >>> for progress in coupling.prepare(fmkit.sources.Gaussian(), x1, seed=0):
        ...     pass
        >>> coupling.pair(torch.tensor([[-0.5], [-0.4], [0.5]]), x1)  # a third of the normal law lies below -0.43
        (tensor([0, 1, 2]), tensor([0, 1, 2]))
    """

    potentials: Tensor
    done: Tensor
    marginal_error: Tensor
    _current: Tensor
    _mark: Tensor
    _unit: Tensor

    def __init__(self, steps: int = 400) -> None:
        super().__init__()
        self.steps = check_count("steps", steps)
        for name in BY_SAMPLE:
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))
        self.register_buffer("marginal_error", torch.tensor(torch.nan, dtype=torch.float64))
        self.register_buffer("done", torch.tensor(0))
        self._shown: tuple[Tensor, Cells] | None = None

    @property
    def whole(self) -> bool:
        return True

    @property
    def figures(self) -> dict[str, float]:
        return {"marginal_error": float(self.marginal_error)}

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        """Indices (i0, i1): i0 counts the rows of x0, i1 are their partners among the rows of x1, all of the data.

        Raises:
            CombinationError: if it was not fitted to this x1.
            ArgumentError: if x0 is empty, not finite, or of other events than x1.
        """
        check_batch(x0, "x0")
        check_generator(generator)
        check_conditions("cond0", cond0, len(x0))
        if self._shown is None or self._shown[0] is not x1:  # the data is looked at once
            self._shown = (x1, self._cells(x1))
        if x0.shape[1:] != x1.shape[1:]:
            raise ArgumentError(f"x0 has shape {tuple(x0.shape)} and x1 {tuple(x1.shape)}; pairing needs equal events")
        check_conditions("cond1", cond1, len(x1))
        rows = torch.arange(len(x0), device=x0.device)
        return rows, self._shown[1].of(x0.detach().reshape(len(x0), -1)).to(x0.device)

    def prepare(self, source: Source, x1: Tensor, cond: Any = None, *, seed: int = 0) -> Iterator[float]:
        """Fit the potentials to the data; a fit to the same data that was cut off, or saved, goes on where it was.

        Raises:
            ArgumentError: if the data is empty or not finite.
        """
        check_instance("source", source, Source)
        check_batch(x1, "x1")
        check_count("seed", seed, least=0)
        return self._fit(source, x1.detach(), seed)

    def _fit(self, source: Source, x1: Tensor, seed: int) -> Iterator[float]:
        self.to(x1.device)
        if not torch.equal(self._mark.cpu(), _mark_of(x1)):
            self._begin(source, x1, seed)
        y = x1.reshape(len(x1), -1).double()
        n, batch = len(y), min(MOST, max(LEAST, 2 * len(y)))
        while int(self.done) < self.steps:
            k = int(self.done)
            x0 = _draw(source, x1, batch, seed, "semidiscrete", k)
            masses = torch.bincount(Cells(y, self._current).of(x0), minlength=n) / batch
            length = min(1.0, batch / n) * (1 + DECAY * k / self.steps) ** -POWER
            self._current += length * self._unit * (1 - n * masses)
            self._current -= self._current.mean()
            averaged = k + 1 - int(AVERAGED * self.steps)
            self.potentials += (self._current - self.potentials) / max(1, averaged)
            self.done += 1
            if int(self.done) == self.steps:
                self.marginal_error.copy_(self._error(source, x1, batch, seed))
            yield int(self.done) / self.steps

    def _begin(self, source: Source, x1: Tensor, seed: int) -> None:
        """The potentials of a discrete problem with fresh x0 on the other side, and the units of a step.

        A step of g_j is measured by the mean gap between the best and the second-best sample in the cell of x1_j: a
        change by about so much makes the cell empty, or twice as large. Cells hit by few x0 take the mean for one more.
        """
        y = x1.reshape(len(x1), -1)
        n = max(2, min(max(LEAST, 4 * len(y)), START // len(y)))
        x0 = _draw(source, x1, n, seed, "semidiscrete", -1).to(y)
        cost = squared_distances(x0.float(), y.float()).cpu().numpy()
        g = torch.from_numpy(potentials(cost, CAREFUL)[1]).to(y.device, torch.float64)
        self._mark, self._current = _mark_of(x1).to(g.device), g - g.mean()
        self.potentials, self._unit = self._current.clone(), torch.zeros_like(g)
        if len(y) > 1:
            best, _, gap = Cells(y, self._current).two(x0)
            hits = torch.bincount(best, minlength=len(y))
            self._unit = (self._unit.index_add(0, best, gap) + gap.mean()) / (hits + 1)
        self.done, self.marginal_error = torch.zeros_like(self.done), torch.full_like(self.marginal_error, torch.nan)
        self._shown = None

    def _error(self, source: Source, x1: Tensor, batch: int, seed: int) -> Tensor:
        """From the pairs of x0 that fall into one cell: their share estimates sum_j p_j² without bias."""
        cells, n = Cells(x1.reshape(len(x1), -1), self.potentials), len(x1)
        draws = (_draw(source, x1, batch, seed, "semidiscrete-error", k) for k in range(CHECKED))
        counts = sum((torch.bincount(cells.of(x0), minlength=n) for x0 in draws), torch.zeros((), device=x1.device))
        total = batch * CHECKED
        squares = (counts * (counts - 1)).sum().double() / (total * (total - 1.0))
        return (n * squares - 1).clamp(min=0).sqrt()

    def _cells(self, x1: Tensor) -> Cells:
        check_batch(x1, "x1")
        if int(self.done) < self.steps:
            raise CombinationError(
                f"the potentials are not fitted: {int(self.done)} of {self.steps} steps are done; go through prepare"
            )
        if not torch.equal(self._mark.cpu(), _mark_of(x1)):
            raise CombinationError(
                f"the potentials were fitted to other data than these {len(x1)} samples; pair wants the whole data set "
                "that prepare was given"
            )
        return Cells(x1.detach().reshape(len(x1), -1), self.potentials.to(x1.device))

    def _load_from_state_dict(self, state_dict, prefix, *others) -> None:
        resize(self, BY_SAMPLE, state_dict, prefix)
        self._shown = None
        super()._load_from_state_dict(state_dict, prefix, *others)


def _draw(source: Source, x1: Tensor, n: int, seed: int, purpose: str, step: int) -> Tensor:
    generator = stream(seed, purpose, step + 1, device=x1.device)
    shape = (n, *x1.shape[1:])
    return source.sample(shape, generator=generator, dtype=torch.float64, device=x1.device).reshape(n, -1)


def _mark_of(x1: Tensor) -> Tensor:
    """A few numbers that tell one data set from another, order included; added up where sums are the same for all."""
    x = x1.detach().cpu().double().flatten(1)
    place = torch.linspace(1, 2, len(x), dtype=torch.float64)
    return torch.stack((place.new_tensor(float(len(x))), x.sum(), x.square().sum(), place @ x.sum(1)))
