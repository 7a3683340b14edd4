"""Regression of one view of the path, with a weight: five objectives in one class.

    loss = w(t) mean over the event of |network(t, x_t) - view(x_t)|²

    velocity    u_t, w = 1: conditional flow matching (Lipman et al., arXiv 2210.02747, eq. 9, 14, 23)
    data        x1, w = 1
    noise       x0, w = 1: DDPM (Ho et al., arXiv 2006.11239)
    score       grad log p_t(x | x1) = -x0/sigma, w = sigma²: score matching, SM (App. E.1)
    scoreflow   the same score, w = g²: ScoreFlow (Song et al., arXiv 2101.09258); beta(1-t) on the VP path

The score is the true one, the gradient of the log-density; the network of the paper's (43) predicts minus the score.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fmkit.arguments import check_generator, check_instance, checked, shown
from fmkit.couplings import Coupling
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import PredictionField, VectorField, as_field, ask
from fmkit.objectives.base import Batch, Loss, Objective, Question
from fmkit.objectives.times import TimeSampler, UniformTime
from fmkit.paths import AffinePath, PathSample, ProbabilityPath
from fmkit.shapes import check_data, widen
from fmkit.sources import Source

# The ends moved inwards until the prediction determines the velocity well: |alpha| at least this at the noise end,
# sigma at least that at the data end (a cut of 1e-4 costs 0.0026 nats).
ALPHA_MIN, SIGMA_MIN = 0.999e-3, 0.999e-4  # a hair below, so that t = 1 - 1e-4 passes despite its rounding


class Regression(Objective):
    """The base class of the five: a subclass names its `view` and perhaps weighs it.

    Args:
        time: at which times to train.
    """

    view: ClassVar[str]
    time: TimeSampler

    def __init__(self, time: TimeSampler | None = None) -> None:
        super().__init__()
        self.time = UniformTime() if time is None else time

    def target(self, path: Any, point: PathSample) -> Any:
        """The view of a point that the network regresses on."""
        match self.view:
            case "velocity":
                if point.velocity is None:
                    raise CombinationError(f"{type(path).__name__} has no velocity to regress on")
                return point.velocity
            case "data":
                return point.x1
            case "noise":
                return point.x0
            case _:
                return -point.x0 / widen(path.coefficients(point.t).sigma, point.x0)

    def weight(self, path: Any, t: Tensor) -> Tensor | None:
        """w(t) `(B,)`, or None for 1."""
        return None

    def interval(self, path: Any) -> tuple[float, float]:
        """The times at which the view determines the velocity: the path's interval, its ends perhaps moved inwards."""
        begin, end = low, high = check_instance("path", path, ProbabilityPath).interval
        if self.view in ("noise", "score"):
            low = _inward(begin, end, lambda t: path.coefficients(t).alpha.abs() >= ALPHA_MIN)
        if self.view in ("data", "score"):
            high = _inward(end, begin, lambda t: path.coefficients(t).sigma.abs() >= SIGMA_MIN)
        return low, high

    def loss(self, network, path, batch, *, ema=None, step=0, generator=None) -> Loss:
        question = self.question(network, path, batch, generator=generator)
        return Loss(question.loss(ask(network, question.t, question.x, question.cond)), question.t, {})

    def question(self, network, path, batch, *, generator=None) -> Question:
        check_instance("path", path, ProbabilityPath)
        check_generator(generator)
        batch = _as_batch(network, batch)
        t = self.time.sample(len(batch.x1), self.interval(path), generator=generator, device=batch.x1.device)
        point = path.sample(t, batch.x0, batch.x1, generator=generator)
        return Question(point.t, point.x, batch.cond, self.target(path, point), self.weight(path, point.t))

    @checked
    def field(
        self,
        network: torch.nn.Module,
        path: ProbabilityPath,
        *,
        source: Source | None = None,
        coupling: Coupling | None = None,
    ) -> VectorField:
        known = source is not None and coupling is not None and source.standard_normal and coupling.independent
        return PredictionField(as_field(network), path, self.view, self.interval(path), known)

    @checked
    def check(self, path: ProbabilityPath, source: Source, coupling: Coupling) -> None:
        name, where = type(self).__name__, type(path).__name__
        if self.view == "velocity":
            return
        if not isinstance(path, AffinePath):
            raise CombinationError(f"{name} on {where}: the path is not affine, so {self.view} gives no velocity")
        if path.has_latent:
            raise CombinationError(
                f"{name} on {where}: the path has latent noise, so {self.view} alone does not determine the velocity; "
                "use the velocity objective"
            )
        if self.view == "score" and not source.standard_normal:
            raise CombinationError(f"{name} from {source}: a score needs a standard Gaussian source")
        if self.view == "score" and not coupling.independent:
            raise CombinationError(
                f"{name} under {type(coupling).__name__}: given x1 the source is no longer Gaussian, so -x0/sigma is "
                "not the score; use the independent coupling, or another objective"
            )


class VelocityMatching(Regression):
    """Conditional flow matching: regress the conditional velocity."""

    view = "velocity"


class DataPrediction(Regression):
    """Predict the data sample."""

    view = "data"


class NoisePrediction(Regression):
    """Predict the source sample: DDPM's epsilon where the source is Gaussian."""

    view = "noise"


class ScoreMatching(Regression):
    """Predict the score, weighted by sigma² (SM in the paper's tables)."""

    view = "score"

    def weight(self, path: Any, t: Tensor) -> Tensor:
        return path.coefficients(t).sigma ** 2


class ScoreFlow(Regression):
    """Predict the score, weighted by g² = 2 sigma (alpha' sigma - alpha sigma') / alpha, the likelihood weighting.

    g is the diffusion coefficient of the path's SDE; on the VP path g² = beta(1 - t).
    """

    view = "score"

    def weight(self, path: Any, t: Tensor) -> Tensor:
        at, rate = path.coefficients(t), path.rates(t)
        return 2 * at.sigma * (rate.alpha * at.sigma - at.alpha * rate.sigma) / at.alpha


def _as_batch(network: Any, batch: Any) -> Batch:
    """The batch, if it is one; its points are looked at by the path."""
    if not callable(network):
        raise ArgumentError(f"network is {shown(network)}, expected a function of (t, x) or (t, x, cond)")
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise ArgumentError(f"batch is {shown(batch)}, expected (x0, x1) or (x0, x1, cond)")
    batch = Batch(*batch)
    check_data(batch.x1, "x1")
    if isinstance(batch.cond, Tensor) and batch.cond.shape[:1] != batch.x1.shape[:1]:
        raise ArgumentError(
            f"cond has shape {tuple(batch.cond.shape)} for {len(batch.x1)} samples, expected one for each"
        )
    return batch


def _inward(end: float, other: float, fine) -> float:
    for step in (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1):
        t = end + step * (other - end)
        if bool(fine(torch.tensor([t], dtype=torch.float64))):
            return t
    raise CombinationError(f"near t = {end:g} this path's view does not determine its velocity")
