"""The oracle that users hold: an exact marginal field on an affine path, with its density, its views and its flow."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_dtype
from fmkit.errors import ArgumentError, CombinationError, did_you_mean
from fmkit.fields import Stochastic, VectorField
from fmkit.objectives import Objective
from fmkit.oracle.floor import Estimate, loss_excess, loss_floor
from fmkit.oracle.law import Row
from fmkit.oracle.mixture import Mixture
from fmkit.oracle.posterior import Posterior, noise_variance, view_row
from fmkit.paths import AffinePath
from fmkit.shapes import check_batch, check_data, check_time, widen
from fmkit.sources import Gaussian, Source

VIEWS = ("velocity", "data", "noise", "latent", "score")

# Where a component has no width, the noise left at an end of the interval must be at least this.
NOISE_MIN = 0.999e-5


class MixtureOracle(VectorField):
    """The marginal field of a Gaussian mixture, or of n points, on an affine path: exact at every time.

    It is a field like any other: `Flow(path.start(source), oracle, event_shape=...)` samples and scores with it.
    Where a component has no width (`std` 0, a singular covariance) and the path leaves no noise at an end, p_t has no
    density there, and `interval` stops 1e-5 short of that end.

    Args:
        path: an affine path.
        means: `(K, *event)`: the components' means.
        weights: `(K,)` positive numbers, scaled to sum 1; equal by default.
        std: one standard deviation >= 0, or `(K,)` of them: Sigma_k = std_k² I; 1 by default.
        covariances: `(K, D, D)` symmetric and positive semi-definite, instead of std; D is the number of elements of
            an event.
        source: a `Gaussian`; standard by default.

    Raises:
        ArgumentError: for shapes that do not fit, numbers that are not finite, weights that are not positive, a
            covariance that is not symmetric or has a negative eigenvalue, or both std and covariances.
        CombinationError: for a path that is not affine, or a source that is not Gaussian.

    Examples:
        >>> import fmkit, torch
        >>> oracle = MixtureOracle(fmkit.paths.CondOT(), means=[[-2.0], [2.0]], std=0.5)
        >>> oracle.velocity(torch.tensor([0.0]), torch.tensor([[1.0]]))  # E[x1] - x
        tensor([[-1.]])
        >>> oracle.log_prob(1.0, torch.tensor([[2.0]])).exp()  # half of N(2, 0.25) at its centre
        tensor([0.3989])
    """

    def __init__(
        self,
        path: AffinePath,
        means: Tensor | Sequence[Any],
        weights: Tensor | Sequence[float] | None = None,
        std: Tensor | Sequence[float] | float | None = None,
        covariances: Tensor | Sequence[Sequence[Sequence[float]]] | None = None,
        source: Source | None = None,
    ) -> None:
        super().__init__()
        source = Gaussian() if source is None else source
        if not isinstance(path, AffinePath):
            raise CombinationError(f"{type(path).__name__} is not affine: its marginals have no closed form")
        if not isinstance(source, Gaussian):
            raise CombinationError(f"{type(source).__name__} is not Gaussian: the marginals have no closed form")
        self.path, self.source = path, source
        self.mixture = Mixture(means, weights, std, covariances)
        self._interval = self._find_interval()

    @staticmethod
    def empirical(path: AffinePath, data: Tensor, source: Source | None = None) -> MixtureOracle:
        """The field of the points `data` (n, *event) themselves: the exact minimiser of the loss on a finite data set.

        Its flow ends on the points. Each x costs n D operations, in pieces that bound memory to about n numbers for it.

        Raises:
            ArgumentError: for data that is empty, not floating point or not finite.
        """
        return MixtureOracle(path, check_data(data, "data"), std=0.0, source=source)

    @property
    def event_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of a sample of the data."""
        return self.mixture.event_shape

    @property
    def interval(self) -> tuple[float, float]:
        return self._interval

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"velocity", "stochastic"})

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        _refuse(cond)
        t, given = self._given(t, x)
        return _as(given.mean(view_row(self.path, "velocity", t)), x)

    def stochastic(self, t: Tensor, x: Tensor, cond: Any = None) -> Stochastic:
        """Velocity, noise and its standard deviation, score = -noise/std; path noise and source noise are one here."""
        _refuse(cond)
        t, given = self._given(t, x)
        std = noise_variance(given.at, self.source).sqrt()
        noise = -std[:, None] * given.score()
        velocity = given.mean(view_row(self.path, "velocity", t))
        return Stochastic(_as(velocity, x), _as(noise, x), widen(std, x))

    def view(self, name: str, t: Tensor | Real, x: Tensor) -> Tensor:
        """The mean of one view given x_t = x: "velocity", "data", "noise", "latent" or "score".

        Args:
            name: the view; "score" is grad log p_t on every path.
            t: `(B,)` times inside `interval`, or one number.
            x: `(B, *event)` points.

        Raises:
            ArgumentError: for another name, a time outside the interval, or points of another shape.
            CombinationError: for "latent" on a path without latent noise.
        """
        if name not in VIEWS:
            raise ArgumentError(f"{name!r} is not a view of a point{did_you_mean(str(name), VIEWS)}")
        if name == "latent" and not self.path.has_latent:
            raise CombinationError(f"{type(self.path).__name__} has no latent noise, so no view of it")
        t, given = self._asked(t, x)
        return _as(given.score() if name == "score" else given.mean(view_row(self.path, name, t)), x)

    def data(self, t: Tensor | Real, x: Tensor) -> Tensor:
        """E[x1 | x_t = x] `(B, *event)`; arguments and errors as of `view`."""
        return self.view("data", t, x)

    def noise(self, t: Tensor | Real, x: Tensor) -> Tensor:
        """E[x0 | x_t = x] `(B, *event)`; arguments and errors as of `view`."""
        return self.view("noise", t, x)

    def score(self, t: Tensor | Real, x: Tensor) -> Tensor:
        """grad log p_t(x) `(B, *event)`; arguments and errors as of `view`."""
        return self.view("score", t, x)

    def log_prob(self, t: Tensor | Real, x: Tensor) -> Tensor:
        """log p_t(x) `(B,)`, in nats, at any time of the interval; arguments and errors as of `view`."""
        return torch.logsumexp(self._asked(t, x)[1].log_joint, 1).to(x.dtype)

    def responsibilities(self, t: Tensor | Real, x: Tensor) -> Tensor:
        """P(component k | x_t = x) `(B, K)`; arguments and errors as of `view`."""
        return self._asked(t, x)[1].responsibilities.to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """`(n, *event)` samples of the data, from `generator` alone.

        Raises:
            ArgumentError: if n is below 1, or the dtype not floating point.
        """
        check_dtype(dtype)
        return self.mixture.sample(n, generator).to(dtype or torch.get_default_dtype())

    def flow_map(self, x: Tensor, t0: Tensor | Real, t1: Tensor | Real) -> Tensor:
        """Where the flow carries points from t0 to t1, for one Gaussian: c(t1) + (V(t1)/V(t0))^(1/2) (x - c(t0)).

        Args:
            x: `(B, *event)` points at t0.
            t0: times inside `interval`, `(B,)` or one number.
            t1: the same, before or after t0.

        Raises:
            ArgumentError: for a time outside the interval, or points of another shape.
            CombinationError: if there is more than one component: that flow has no closed form.
        """
        if len(self.mixture) != 1:
            raise CombinationError(f"the flow of {len(self.mixture)} components has no closed form; solve the ODE")
        (_, begin), (_, end) = self._asked(t0, x), self._given(t1, x)
        carried = (end.variance / begin.variance).sqrt()[:, 0] * begin.away()[:, 0]
        if self.mixture.axes is not None:
            carried = carried @ self.mixture.axes[0].T
        centre = end.at.alpha[:, None] * self.mixture.means + (end.at.sigma * self.source.mean)[:, None]
        return _as(centre + carried, x)

    def loss_floor(self, objective: Objective, n: int = 10_000, generator: torch.Generator | None = None) -> Estimate:
        """The least expected loss of an objective on this path and data: E w(t) mean over the event of Var[target | x].

        Theorem 2's constant: what a perfect network's loss is. The variance given x is exact; times (from the
        objective's own sampler, on its own interval, stratified) and points are drawn: the estimate has no bias.

        Args:
            objective: one of the regressions.
            n: draws, >= 2; the standard error falls as 1/sqrt(n).
            generator: the only randomness there is.

        Raises:
            ArgumentError: if n is below 2.
            CombinationError: for an objective that is no regression, or has no meaning on this path and source.
        """
        return loss_floor(self.mixture, self.path, self.source, objective, n, generator)

    def loss_excess(
        self, objective: Objective, network: torch.nn.Module, n: int = 10_000, generator: torch.Generator | None = None
    ) -> Estimate:
        """How far a network's loss is above the least: E w(t) mean over the event of |network - E[target | x]|².

        Nothing is subtracted: of a perfect network the estimate is 0, without an error.

        Args:
            objective: one of the regressions.
            network: predicts the objective's view at `(t, x)`.
            n: draws, >= 2.
            generator: the only randomness there is.

        Raises:
            ArgumentError: if n is below 2.
            CombinationError: as `loss_floor`.
        """
        return loss_excess(network, self.mixture, self.path, self.source, objective, n, generator)

    def _asked(self, t: Tensor | Real, x: Tensor) -> tuple[Tensor, Posterior]:
        """`_given`, of points that a user asks about: a solver may try ones that are not finite."""
        check_batch(x)
        return self._given(t, x)

    def _given(self, t: Tensor | Real, x: Tensor) -> tuple[Tensor, Posterior]:
        """The times, checked, and what the points say."""
        if check_data(x).shape[1:] != self.event_shape:
            raise ArgumentError(f"x has events of shape {tuple(x.shape[1:])}, this oracle's are {self.event_shape}")
        t = check_time(t, x, self.interval)
        flat = x.reshape(len(x), -1).to(self.mixture.means.dtype)
        return t, Posterior(self.mixture, self.source, Row.of(self.path.coefficients(t)), flat)

    def _find_interval(self) -> tuple[float, float]:
        low, high = self.path.interval
        if bool((self.mixture.variances > 0).all()):
            return low, high
        return self._inward(low, high), self._inward(high, low)

    def _inward(self, end: float, other: float) -> float:
        for step in (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1):
            t = end + step * (other - end)
            at = Row.of(self.path.coefficients(torch.tensor([t], dtype=torch.float64)))
            if noise_variance(at, self.source).item() >= NOISE_MIN**2:
                return t
        raise CombinationError(f"near t = {end:g} {type(self.path).__name__} has no noise, so points have no density")


def _refuse(cond: Any) -> None:
    if cond is not None:
        raise ArgumentError("a condition was given to an oracle, which has none")


def _as(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(x.shape).to(x.dtype)
