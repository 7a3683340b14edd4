"""The least loss that a run can reach, so that "stuck at 0.23" has an answer: least, and excess over it.

Where the data's law is known (toy densities) the floor is that law's: the loss of a network that knows it. Otherwise it
is that of the training samples themselves: what a network reaches that has learnt them by heart. A network that does
better on new data stays above that floor; and of a part of the samples it is lower, in expectation, than of all of
them, since fewer points are easier to learn by heart (the least mean squared error is concave in the law).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count
from fmkit.couplings import Coupling
from fmkit.data.base import Data, Stratum, as_tensor
from fmkit.errors import ArgumentError, CombinationError
from fmkit.objectives import Objective
from fmkit.oracle import Estimate, Mixture, loss_excess, loss_floor
from fmkit.paths import AffinePath, ProbabilityPath
from fmkit.randomness import stream
from fmkit.sources import Gaussian, Source
from fmkit.transforms import Affine

# Of points: how many are taken, and for how many numbers (draws times points times elements) there is time: a second.
POINTS, WORK = 1000, 2e8
DRAWS = 2**13
FEWEST_DRAWS = 256
LABELS = 100  # more of them are no labels


@dataclass(frozen=True)
class LossFloor:
    """The least expected loss of an objective on some data, under the independent coupling.

    Attributes:
        value: the floor, in the loss's units.
        standard_error: of its estimate.
        points: how many training samples it belongs to, learnt by heart; None where it is the data's law's.
        of: of how many.
    """

    value: float
    standard_error: float
    points: int | None
    of: int
    _strata: Sequence[Stratum] = field(repr=False)
    _question: tuple[Any, ...] = field(repr=False)

    def excess(self, network: torch.nn.Module, draws: int = DRAWS) -> Estimate:
        """How far the expected loss of a network is above the floor, estimated without subtracting the two.

        Of each stratum (the whole, or a label) at most so many draws are taken, evaluations of the network all.
        """
        check_count("draws", draws, least=2 * 8)

        def above(s: Stratum, path: AffinePath, source: Gaussian, objective: Objective, n: int, g: Any) -> Estimate:
            return loss_excess(network, s.law, path, source, objective, n, g, s.cond)

        return _over(self._strata, above, self._question, draws)

    def __str__(self) -> str:
        if self.points is None:
            return "of the data's law"
        count = f"{self.points}" if self.points == self.of else f"{self.points} of {self.of}"
        return f"of {count} training samples, learnt by heart"


def floor_of(
    data: Data,
    path: ProbabilityPath,
    objective: Objective,
    source: Source,
    coupling: Coupling,
    seed: int = 0,
    dropped: float = 0.0,
) -> LossFloor:
    """The least expected loss that a network can have in training.

    Args:
        data: what is trained on.
        path: an affine path.
        objective: one of the regressions.
        source: a Gaussian.
        coupling: an independent one.
        seed: of the draws, and of the points taken where there are more than 1000.
        dropped: the share of conditions that the network does not see.

    Raises:
        CombinationError: where no floor is known, and why.
        ArgumentError: if the density's events have not the shape of the samples.
    """
    affine, gaussian = _parts(path, source, coupling)
    if data.x0 is not None:
        raise CombinationError("the data comes in pairs (x0, x1): the least loss of a given pairing is not known")
    points, of = None, 0
    if data.density is None or data.augment is not None:
        strata, points, of = _by_heart(data, seed)
    else:
        strata = _in_model_units(data)
    if dropped and strata[0].cond is not None:
        strata = [*(Stratum((1 - dropped) * s.share, s.law, s.cond) for s in strata), _pooled(strata, dropped)]
    for stratum in strata:
        stratum.law.to(_device(path))
    question = affine, gaussian, objective, seed
    value = _over(strata, lambda s, *about: loss_floor(s.law, *about), question)
    return LossFloor(*value, points, of, strata, question)


def _parts(path: ProbabilityPath, source: Source, coupling: Coupling) -> tuple[AffinePath, Gaussian]:
    if not isinstance(path, AffinePath):
        raise CombinationError(f"{type(path).__name__} is not affine: the least loss on it is not known")
    if not isinstance(source, Gaussian):
        raise CombinationError(f"{type(source).__name__} is not Gaussian: the least loss from it is not known")
    if not coupling.independent:
        raise CombinationError(f"{type(coupling).__name__} is not independent: the least loss under it is not known")
    return path, source


def _device(part: torch.nn.Module) -> torch.device:
    return next((tensor.device for tensor in [*part.parameters(), *part.buffers()]), torch.device("cpu"))


def _over(strata: Sequence[Stratum], estimate: Any, question: Any, most: int = DRAWS) -> Estimate:
    """The mean over the strata, by their shares, each with as many draws as there is time for."""
    value = variance = 0.0
    path, source, objective, seed = question
    for i, stratum in enumerate(strata):
        n = min(most, max(FEWEST_DRAWS, int(WORK / stratum.law.size))) // min(len(strata), 8)
        generator = stream(seed, "loss-floor", i)
        one = estimate(stratum, path, source, objective, n, generator)
        value, variance = value + stratum.share * one.value, variance + (stratum.share * one.standard_error) ** 2
    return Estimate(value, variance**0.5)


def _in_model_units(data: Data) -> list[Stratum]:
    assert data.density is not None  # asked by the caller
    events = {s.law.event_shape for s in data.density}
    if hasattr(data.x, "shape"):  # of a Dataset it is not known before it is read
        events.add(tuple(data.x.shape[1:]))
    if len(events) > 1:
        raise ArgumentError(f"data and its density have events of shapes {sorted(events)}, expected the same")
    if data.transform is None:
        return list(data.density)
    if not isinstance(data.transform, Affine):
        raise CombinationError(f"the data's law through {type(data.transform).__name__} is not known")
    shift, scale = data.transform.shift, data.transform.scale
    return [Stratum(s.share, s.law.standardised(shift, scale), s.cond) for s in data.density]


def _by_heart(data: Data, seed: int) -> tuple[list[Stratum], int, int]:
    """The training samples themselves, or some of them, augmented once: strata, how many, and of how many."""
    if not isinstance(data.x, Tensor) and not hasattr(data.x, "__array__"):
        raise CombinationError(f"the data is a {type(data.x).__name__}: only the least loss of a tensor is known")
    x = as_tensor(data.x, "data")
    rows = torch.randperm(len(x), generator=stream(seed, "floor-points"))[:POINTS]
    points = x[rows.to(x.device)]
    points = data.augmented(points, stream(seed, "floor-augment", device=x.device))
    points = points.double()
    if data.transform is not None:
        points = data.transform(points.to(_device(data.transform)))
    points = points.cpu()
    groups = list(_by_label(data.cond, rows, len(x)))
    strata = [Stratum(len(at) / len(rows), Mixture(points[at], std=0.0), label) for label, at in groups]
    return strata, len(rows), len(x)


def _by_label(cond: Any, rows: Tensor, n: int) -> Iterator[tuple[Any, Tensor]]:
    """Each label, and which of the rows have it."""
    if cond is None:
        yield None, torch.arange(len(rows))
        return
    labels = torch.as_tensor(cond).cpu()
    if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
        raise CombinationError("the conditions are no labels: the least loss given a number or a vector is not known")
    labels = labels[rows]
    kinds = labels.unique()
    if len(kinds) > LABELS:
        raise CombinationError(f"there are over {LABELS} different labels: samples of one are too few for a least loss")
    for label in kinds:
        yield label, (labels == label).nonzero()[:, 0]


def _pooled(strata: Sequence[Stratum], share: float) -> Stratum:
    """What a network sees of them whose condition was dropped."""
    laws = [s.law for s in strata if isinstance(s.law, Mixture)]
    if len(laws) < len(strata):
        raise CombinationError("conditions are dropped in training, and the law of all the data is not known")
    return Stratum(share, Mixture.pooled([s.share for s in strata], laws))
