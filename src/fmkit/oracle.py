"""Exact marginal fields: what a perfect network would answer, in closed form.

The data is a mixture sum_k w_k N(mu_k, Sigma_k), or n points (Sigma_k = 0); the source is N(m, s² I), coupled
independently; the path is affine. Then x_t = alpha x1 + sigma x0 + gamma z is a mixture too:

    p_t(x) = sum_k w_k N(x; c_k, V_k),   c_k = alpha mu_k + sigma m,   V_k = alpha² Sigma_k + (sigma² s² + gamma²) I
    r_k(x) = w_k N(x; c_k, V_k) / p_t(x)                                       (the posterior over components)

A view of the point is a row (a, b, c) over the latents (x1, x0, z), as in `fmkit.paths.affine`; its mean given x is

    sum_k r_k [a mu_k + b m + G_k V_k^-1 (x - c_k)],   G_k = a alpha Sigma_k + (b sigma s² + c gamma) I

The row (alpha', sigma', gamma') gives the marginal velocity (Lipman et al., arXiv 2210.02747, eq. 8), (1, 0, 0) the
data, (0, 1, 0) the noise; the score grad log p_t is -sum_k r_k V_k^-1 (x - c_k). Within a component the view has
covariance

    [(a sigma - b alpha)² s² Sigma_k + (a gamma - c alpha)² Sigma_k + (b gamma - c sigma)² s² I] V_k^-1

and the mean of its trace plus the spread of the components' means is the least loss any network can reach: what
Theorem 2 leaves between L_CFM and L_FM. Everything is computed in float64, along the axes of each Sigma_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.couplings import Independent
from fmkit.errors import ArgumentError, CombinationError, did_you_mean
from fmkit.fields import Stochastic, VectorField
from fmkit.objectives import Objective, Regression
from fmkit.paths import AffinePath, Coefficients
from fmkit.shapes import check_data, check_finite, check_time, time_dtype, widen
from fmkit.sources import Gaussian, Source

VIEWS = ("velocity", "data", "noise", "latent", "score")

# Where a component has no width, the noise left at an end of the interval must be at least this.
NOISE_MIN = 0.999e-5
# Numbers held at once, points times components times dimensions: two megabytes stay in a processor's cache.
CHUNK_ELEMENTS = 2**18


class Floor(NamedTuple):
    """The least expected loss, estimated without bias: `value`, and the `standard_error` of the estimate."""

    value: float
    standard_error: float


class _Row(NamedTuple):
    """Weights `(B,)` of the latents (x1, x0, z)."""

    alpha: Tensor
    sigma: Tensor
    gamma: Tensor


class _Place(NamedTuple):
    """Points `(B, D)` less sigma m, the path's coefficients, and the variances of x along each component's axes."""

    x: Tensor
    at: _Row
    variance: Tensor  # (B, K, D), or (B, K, 1) where the components are round


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

    means: Tensor
    log_weights: Tensor
    variances: Tensor
    axes: Tensor | None

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
        mu = _numbers("means", means)
        if mu.ndim < 1 or mu.numel() == 0:
            raise ArgumentError(f"means has shape {tuple(mu.shape)}, expected a non-empty (K, *event)")
        self.event_shape = tuple(mu.shape[1:])
        w = torch.ones(len(mu), dtype=mu.dtype) if weights is None else _numbers("weights", weights)
        if w.shape != mu.shape[:1]:
            raise ArgumentError(f"weights has shape {tuple(w.shape)}, expected ({len(mu)},): one for each component")
        if not bool((w > 0).all()):
            raise ArgumentError(f"weights has {w.min().item():g}, expected positive numbers")
        if std is not None and covariances is not None:
            raise ArgumentError("std and covariances are both given; a component has one covariance")
        mu = mu.reshape(len(mu), -1)
        if covariances is None:
            variances, axes = _round(1.0 if std is None else std, len(mu)), None
        else:
            variances, axes = _eigen(_numbers("covariances", covariances), (*mu.shape, mu.shape[1]))
        buffers = {"means": mu, "log_weights": torch.log(w / w.sum()), "variances": variances, "axes": axes}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)  # made from the arguments, which are saved
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
    def interval(self) -> tuple[float, float]:
        return self._interval

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"velocity", "stochastic"})

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        _refuse(cond)
        return self.view("velocity", t, x)

    def stochastic(self, t: Tensor, x: Tensor, cond: Any = None) -> Stochastic:
        """Velocity, noise and its standard deviation, score = -noise/std; path noise and source noise are one here."""
        _refuse(cond)
        t, place = self._check(t, x)
        posterior, std = torch.softmax(self._log_joint(place), 1), self._noise(place.at).sqrt()
        noise = -std[:, None] * self._mean("score", t, place, posterior)
        velocity, noise = (v.reshape(x.shape).to(x.dtype) for v in (self._mean("velocity", t, place, posterior), noise))
        return Stochastic(velocity, noise, widen(std, x))

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
            raise ArgumentError(f"{name!r} is not a view of a point{did_you_mean(name, VIEWS)}")
        if name == "latent" and not self.path.has_latent:
            raise CombinationError(f"{type(self.path).__name__} has no latent noise, so no view of it")
        t, place = self._check(t, x)
        mean = self._mean(name, t, place, torch.softmax(self._log_joint(place), 1))
        return mean.reshape(x.shape).to(x.dtype)

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
        return torch.logsumexp(self._log_joint(self._check(t, x)[1]), 1).to(x.dtype)

    def responsibilities(self, t: Tensor | Real, x: Tensor) -> Tensor:
        """P(component k | x_t = x) `(B, K)`; arguments and errors as of `view`."""
        return torch.softmax(self._log_joint(self._check(t, x)[1]), 1).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """`(n, *event)` samples of the data, from `generator` alone.

        Raises:
            ArgumentError: if n is below 1.
        """
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise ArgumentError(f"n is {n!r}, expected a number of samples of at least 1")
        device = self.means.device if generator is None else generator.device
        k = torch.multinomial(self.log_weights.exp().to(device), int(n), replacement=True, generator=generator)
        z = torch.randn(int(n), self.means.shape[1], generator=generator, dtype=self.means.dtype, device=device)
        k, z = k.to(self.means.device), z.to(self.means.device)
        away = self.variances[k].sqrt() * z
        if self.axes is not None:
            away = torch.einsum("nij,nj->ni", self.axes[k], away)
        return (self.means[k] + away).reshape(-1, *self.event_shape).to(dtype or torch.get_default_dtype())

    def flow_map(self, x: Tensor, t0: Tensor | Real, t1: Tensor | Real) -> Tensor:
        """Where the flow carries points from t0 to t1, for one Gaussian: c(t1) + (V(t1)/V(t0))^(1/2) (x - c(t0)).

        Args:
            x: `(B, *event)` points at t0.
            t0, t1: times inside `interval`, `(B,)` or one number, in either order.

        Raises:
            ArgumentError: for a time outside the interval, or points of another shape.
            CombinationError: if there is more than one component: that flow has no closed form.
        """
        if len(self.means) != 1:
            raise CombinationError(f"the flow of {len(self.means)} components has no closed form; solve the ODE")
        _, begin = self._check(t0, x)
        _, end = self._check(t1, x)
        scale = (end.variance / begin.variance).sqrt()[:, 0]
        if self.axes is None:
            carried = scale * (begin.x - begin.at.alpha[:, None] * self.means)
        else:
            carried = torch.einsum("ij,bj->bi", self.axes[0], scale * self._along(begin)[:, 0])
        centre = end.at.alpha[:, None] * self.means + (end.at.sigma * self.source.mean)[:, None]
        return (centre + carried).reshape(x.shape).to(x.dtype)

    def loss_floor(self, objective: Objective, n: int = 10_000, generator: torch.Generator | None = None) -> Floor:
        """The least expected loss of an objective on this path and data: E w(t) mean over the event of Var[target | x].

        Theorem 2's constant: what a perfect network's loss is. The variance given x is exact; times (from the
        objective's own sampler, on its own interval) and points are drawn, so the estimate has no bias.

        Args:
            objective: one of the regressions.
            n: draws, >= 2; the standard error falls as 1/sqrt(n).
            generator: the only randomness there is.

        Raises:
            ArgumentError: if n is below 2.
            CombinationError: for an objective that is no regression, or has no meaning on this path and source.
        """
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 2:
            raise ArgumentError(f"n is {n!r}, expected a number of draws of at least 2")
        if not isinstance(objective, Regression):
            raise CombinationError(f"{type(objective).__name__} is no regression of a view, so its floor is not known")
        objective.check(self.path, self.source, Independent())
        device, dtype = self.means.device, self.means.dtype
        t = objective.time.sample(int(n), objective.interval(self.path), generator=generator, device=device)
        x1 = self.sample(n, generator, dtype=dtype)
        x0 = self.source.sample(
            x1.shape, generator=generator, dtype=dtype, device=device if generator is None else generator.device
        )
        x = self.path.sample(t, x0.to(device), x1, generator=generator).x
        rows = max(1, CHUNK_ELEMENTS // self.means.numel())
        pieces = [self._variance(objective.view, *at) for at in zip(t.split(rows), x.split(rows), strict=True)]
        value, weight = torch.cat(pieces) / self.means.shape[1], objective.weight(self.path, t)
        value = value if weight is None else value * weight
        return Floor(value.mean().item(), (value.std() / math.sqrt(n)).item())

    def _check(self, t: Tensor | Real, x: Tensor) -> tuple[Tensor, _Place]:
        if check_data(x).shape[1:] != self.event_shape:
            raise ArgumentError(f"x has events of shape {tuple(x.shape[1:])}, this oracle's are {self.event_shape}")
        t = check_time(t, x, self.interval)
        return t, self._place(t, x)

    def _place(self, t: Tensor, x: Tensor) -> _Place:
        at = _filled(self.path.coefficients(t))
        x = x.reshape(len(x), -1).to(self.means.dtype) - (at.sigma * self.source.mean)[:, None]
        variance = (at.alpha**2)[:, None, None] * self.variances + self._noise(at)[:, None, None]
        # Points with no noise at all: their own component stays finite, and all others are infinitely far.
        return _Place(x, at, variance.clamp_min(torch.finfo(variance.dtype).tiny))

    def _noise(self, at: _Row) -> Tensor:
        """The variance of all that is not data, `(B,)`."""
        return (at.sigma * self.source.std) ** 2 + at.gamma**2

    def _along(self, place: _Place) -> Tensor:
        """x - c_k along the axes of Sigma_k, `(B, K, D)`."""
        away = place.x[:, None] - place.at.alpha[:, None, None] * self.means
        return away if self.axes is None else torch.einsum("bki,kij->bkj", away, self.axes)

    def _log_joint(self, place: _Place) -> Tensor:
        """log w_k N(x; c_k, V_k), `(B, K)`."""
        dim = self.means.shape[1]
        if self.axes is None:
            variance = place.variance[..., 0]
            square, log_det = self._squares(place) / variance, dim * variance.log()
        else:
            square = (self._along(place) ** 2 / place.variance).sum(-1)
            log_det = place.variance.log().sum(-1)
        return self.log_weights - 0.5 * (square + log_det + dim * math.log(2 * math.pi))

    def _squares(self, place: _Place) -> Tensor:
        """|x - c_k|² `(B, K)`, over pieces of K, and without the cancellation of |x|² - 2 x.c + |c|².

        The differences are taken at a copy y of x that needs no gradient, so derivatives in x keep nothing of size
        B K D: |x - c|² = |y - c|² + 2 (x - y).(y - c) + |x - y|².
        """
        y, pieces = place.x.detach(), []
        for means in self.means.split(max(1, CHUNK_ELEMENTS // y.numel())):
            pieces.append((y[:, None] - place.at.alpha[:, None, None] * means).square().sum(-1))
        shift = place.x - y
        linear = (shift * y).sum(1, keepdim=True) - place.at.alpha[:, None] * (shift @ self.means.T)
        return torch.cat(pieces, 1) + 2 * linear + shift.square().sum(1, keepdim=True)

    def _row(self, view: str, t: Tensor, at: _Row) -> _Row:
        """The view over the latents (x1, x0, z); a score's is that of one sample, where the source is its noise."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        match view:
            case "velocity":
                return _filled(self.path.rates(t))
            case "data":
                return _Row(one, zero, zero)
            case "noise":
                return _Row(zero, one, zero)
            case "latent":
                return _Row(zero, zero, one)
            case _:
                return _Row(zero, -1 / at.sigma, zero)

    def _mean(self, view: str, t: Tensor, place: _Place, posterior: Tensor) -> Tensor:
        """E[view | x_t = x], `(B, D)`."""
        if view == "score":
            return self._blend(place, posterior, torch.zeros_like(t), -1 / place.variance)
        row = self._row(view, t, place.at)
        mean = self._blend(place, posterior, row.alpha, self._gain(place, row))
        return mean + (row.sigma * self.source.mean)[:, None]

    def _gain(self, place: _Place, row: _Row) -> Tensor:
        """G_k V_k^-1 along the axes."""
        data = (row.alpha * place.at.alpha)[:, None, None] * self.variances
        noise = row.sigma * place.at.sigma * self.source.std**2 + row.gamma * place.at.gamma
        return (data + noise[:, None, None]) / place.variance

    def _blend(self, place: _Place, posterior: Tensor, a: Tensor, gain: Tensor) -> Tensor:
        """sum_k r_k [a mu_k + A_k gain_k A_k^T (x - c_k)], `(B, D)`, A_k the axes; nothing of size B K D if round."""
        mean = a[:, None] * (posterior @ self.means)
        if self.axes is not None:
            return mean + torch.einsum("kij,bkj->bi", self.axes, posterior[..., None] * gain * self._along(place))
        pull = posterior * gain[..., 0]
        return mean + pull.sum(1, keepdim=True) * place.x - place.at.alpha[:, None] * (pull @ self.means)

    def _variance(self, view: str, t: Tensor, x: Tensor) -> Tensor:
        """The trace of Cov[view | x_t = x], `(B,)`."""
        place = self._place(t, x)
        at, row = place.at, self._row(view, t, place.at)
        posterior = torch.softmax(self._log_joint(place), 1)
        each = self._gain(place, row) * self._along(place)
        if self.axes is not None:
            each = torch.einsum("kij,bkj->bki", self.axes, each)
        each = row.alpha[:, None, None] * self.means + each
        apart = (each - torch.einsum("bk,bki->bi", posterior, each)[:, None]).square().sum(-1)
        std = self.source.std
        data = ((row.alpha * at.sigma - row.sigma * at.alpha) * std) ** 2
        data = data + (row.alpha * at.gamma - row.gamma * at.alpha) ** 2
        rest = ((row.sigma * at.gamma - row.gamma * at.sigma) * std) ** 2
        within = (data[:, None, None] * self.variances + rest[:, None, None]) / place.variance
        within = within.sum(-1) * (each.shape[-1] / within.shape[-1])
        return (posterior * (within + apart)).sum(1)

    def _find_interval(self) -> tuple[float, float]:
        low, high = self.path.interval
        if bool((self.variances > 0).all()):
            return low, high
        return self._inward(low, high), self._inward(high, low)

    def _inward(self, end: float, other: float) -> float:
        for step in (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1):
            t = end + step * (other - end)
            noise = self._noise(_filled(self.path.coefficients(torch.tensor([t], dtype=torch.float64))))
            if noise.item() >= NOISE_MIN**2:
                return t
        raise CombinationError(f"near t = {end:g} {type(self.path).__name__} has no noise, so points have no density")

    def _apply(self, fn, recurse: bool = True):
        # Moves with the device and stays float64, whatever the precision of the flow it is in.
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        device = self.means.device
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(device, time_dtype(device))
        return self


def _refuse(cond: Any) -> None:
    if cond is not None:
        raise ArgumentError("a condition was given to an oracle, which has none")


def _filled(at: Coefficients) -> _Row:
    """The coefficients, with zeros for a latent noise that is not there."""
    return _Row(at.alpha, at.sigma, torch.zeros_like(at.alpha) if at.gamma is None else at.gamma)


def _numbers(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{name} is no array of numbers: {error}") from None
    check_finite(tensor.reshape(-1), name)
    return tensor


def _round(std: Any, n: int) -> Tensor:
    """`(K, 1)` variances of round components."""
    std = _numbers("std", std)
    if std.ndim and std.shape != (n,):
        raise ArgumentError(f"std has shape {tuple(std.shape)}, expected ({n},): one for each component")
    if not bool((std >= 0).all()):
        raise ArgumentError(f"std has {std.min().item():g}, expected standard deviations >= 0")
    return (std**2).expand(n)[:, None].contiguous()


def _eigen(covariances: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(K, D)` and eigenvectors `(K, D, D)`; what rounding made of a zero is a zero again."""
    if covariances.shape != shape:
        raise ArgumentError(f"covariances has shape {tuple(covariances.shape)}, expected {shape}, as means has it")
    for k, covariance in enumerate(covariances):
        if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * covariance.abs().max().item()):
            raise ArgumentError(f"covariance {k} is not symmetric")
    values, axes = torch.linalg.eigh((covariances + covariances.mT) / 2)
    largest = values.abs().amax(1, keepdim=True)
    negative = (values < -1e-7 * largest).any(1)  # a covariance rounded to float32 may dip that far below 0
    if bool(negative.any()):
        k = int(negative.nonzero()[0])
        raise ArgumentError(f"covariance {k} has eigenvalue {values[k, 0].item():g}, expected a covariance: all >= 0")
    floor = shape[-1] * torch.finfo(values.dtype).eps * largest
    return torch.where(values > floor, values, 0.0), axes
