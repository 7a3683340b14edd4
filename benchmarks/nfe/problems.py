"""The fields that solvers are measured on, each with the points that its flow ends in.

Exact ones are marginal fields of Gaussian mixtures (`fmkit.MixtureOracle`); a learned one is a network trained on the
first of those mixtures. All arithmetic is float64. Errors are in units of the data's spread, the square root of the
trace of its covariance:

    error = (mean over samples of |x - x*|²)^(1/2) / spread
    law error = SW2(x, x*) / (spread / sqrt(D))             the same directions for all, at most about the error

x* is where the flow takes the same start. The law error is blind to samples that change places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fmkit
from fmkit.metrics import SlicedWasserstein
from fmkit.oracle import MixtureOracle
from fmkit.paths import AffinePath, CondOT, Cosine, VariancePreserving
from fmkit.randomness import stream
from fmkit.shapes import batch_time
from fmkit.solvers import DOP853, Dopri8, Solver
from fmkit.sources import Gaussian

PATHS: dict[str, Callable[[], AffinePath]] = {"condot": CondOT, "vp": VariancePreserving, "cosine": Cosine}
SEED = 0
TIGHT = 1e-12
PROJECTIONS = 64


@dataclass(frozen=True)
class Problem:
    """A field to follow, and where that leads.

    Attributes:
        kind: "exact" or "learned".
        path: name of the path.
        data: name of the data.
        f: `(t, x) -> dx/dt`.
        x0: `(B, D)` starting points.
        times: where the field begins and where it ends.
        end: `(B, D)` end points.
        spread: of the data.
        reference_error: the error of `end` itself, as another solver sees it.
        floor: the law error between two independent sets of B exact samples: less is not seen.
    """

    kind: str
    path: str
    data: str
    f: Callable[..., Tensor]
    x0: Tensor
    times: tuple[float, float]
    end: Tensor
    spread: float
    reference_error: float
    floor: float

    def error(self, x: Tensor) -> float:
        """The error of end points `(n, D)` of the first n starts."""
        return _root_mean_square(x - self.end[: len(x)]) / self.spread

    def law_error(self, x: Tensor) -> float:
        """The law error of end points `(n, D)` of the first n starts."""
        return _law_distance(x, self.end[: len(x)], self.spread)


def mixtures() -> dict[str, Callable[[AffinePath], MixtureOracle]]:
    """Three laws unlike each other: their oracles on a path, by name."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = 5 * torch.stack([angles.cos(), angles.sin()], 1)
    draw = stream(SEED, "benchmark-mixtures")
    centres = torch.randn(5, 16, generator=draw, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(5, 16, 16, generator=draw, dtype=torch.float64))[0]
    widths = torch.logspace(math.log10(0.05), 0.0, 16, dtype=torch.float64)
    covariances = axes @ torch.diag(widths**2) @ axes.mT
    covariances = (covariances + covariances.mT) / 2  # rounding is not symmetric
    points = torch.randn(20, 3, generator=draw, dtype=torch.float64)
    weights = [0.4, 0.3, 0.15, 0.1, 0.05]
    return {
        "ring": lambda path: MixtureOracle(path, ring, std=1.0),
        "anisotropic": lambda path: MixtureOracle(path, centres, weights, covariances=covariances),
        "narrow": lambda path: MixtureOracle(path, points, std=0.05),
    }


DATA = {
    "ring": "eight round Gaussians on a ring in two dimensions, radius 5 and standard deviation 1 (Tong et al. 2024)",
    "anisotropic": "five Gaussians of unequal weights in sixteen dimensions, each with axes of its own and standard "
    "deviations from 0.05 to 1 along them",
    "narrow": "twenty Gaussians of standard deviation 0.05 in three dimensions: data close to points",
}


def exact(
    samples: int, tight: float = TIGHT, data: Iterable[str] = tuple(DATA), paths: Iterable[str] = tuple(PATHS)
) -> Iterator[Problem]:
    """Every mixture under every path, or those that are named."""
    for name in data:
        for path in paths:
            oracle = mixtures()[name](PATHS[path]())
            yield problem("exact", path, name, oracle, oracle, samples, tight)


def learned(samples: int, steps: int, tight: float = TIGHT, paths: Iterable[str] = tuple(PATHS)) -> Iterator[Problem]:
    """A network trained on the ring under every path, as `fmkit train 8gaussians` would, in fewer steps."""
    data = fmkit.data.EightGaussians().load(SEED).train
    settings = fmkit.Settings(steps=steps, batch_size=512, warmup=min(100, steps // 2), decay="cosine", clip=1.0)
    for name in paths:
        path = PATHS[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = fmkit.fields.MLP(event_shape=2, width=128, depth=3)
            flow = fmkit.Trainer(path(), network, settings=settings, callbacks=[]).fit(data).double()
        if flow.transform is not None:
            raise RuntimeError("the ring is learnt in units of its own, so the two fields cannot be compared")
        flow.requires_grad_(False)
        yield problem("learned", name, "ring", flow.field, mixtures()["ring"](path()), samples, tight)


def problem(
    kind: str,
    path: str,
    data: str,
    field: fmkit.VectorField,
    oracle: MixtureOracle,
    samples: int,
    tight: float = TIGHT,
) -> Problem:
    """The field with its end points, from one tight solve that another one checks."""

    def f(t: Any, x: Tensor) -> Tensor:
        return field(batch_time(t, x), x)

    start = oracle.path.start(Gaussian())
    x0 = start.sample((samples, *oracle.event_shape), generator=stream(SEED, "benchmark-start"), dtype=torch.float64)
    times, spread = field.interval, spread_of(oracle)
    end = _solved(DOP853(tight, tight), f, x0, times)
    other = _solved(Dopri8(tight, tight, max_steps=100_000), f, x0, times)
    first, second = (oracle.sample(samples, stream(SEED, "benchmark-floor", i), dtype=torch.float64) for i in range(2))
    floor = _law_distance(first, second, spread)
    return Problem(kind, path, data, f, x0, times, end, spread, _root_mean_square(other - end) / spread, floor)


def spread_of(oracle: MixtureOracle) -> float:
    """The square root of the trace of the data's covariance."""
    mixture = oracle.mixture
    weights = mixture.log_weights.exp()
    within = mixture.variances.expand(len(mixture), mixture.dim).sum(1)
    mean = weights @ mixture.means
    return math.sqrt((weights @ (within + mixture.means.square().sum(1)) - mean @ mean).item())


def _solved(solver: Solver, f: Callable[..., Tensor], x0: Tensor, times: tuple[float, float]) -> Tensor:
    with torch.no_grad():
        return solver.solve(f, x0, times).final


def _root_mean_square(away: Tensor) -> float:
    return away.square().sum(1).mean().sqrt().item()


def _law_distance(x: Tensor, y: Tensor, spread: float) -> float:
    distance = SlicedWasserstein(PROJECTIONS)(x, y, generator=stream(SEED, "benchmark-directions"))
    return distance / (spread / math.sqrt(x.shape[1]))
