"""Affine paths x_t = alpha(t) x1 + sigma(t) x0 + gamma(t) z, and the one formula that converts their views.

Nearly every path in use is affine in its latents (x1, x0, z), with z ~ N(0, I). Each view of a point is a row over
them:

    state     (alpha,  sigma,  gamma)         data   (1, 0, 0)        noise   (0, 1, 0)
    velocity  (alpha', sigma', gamma')        latent (0, 0, 1)
    score     minus the Gaussian latent over its standard deviation: (0, -1/sigma, 0), or (0, 0, -1/gamma)

A network's prediction of one view is an estimate of that row's conditional mean given x_t = x, and conditional means
are linear: `convert` writes the row wanted as a combination of the rows given, and combines the given views likewise.
The state is always given; without gamma one view more suffices, with gamma two are needed.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.arguments import check_generator, check_instance
from fmkit.differentiation import time_derivative
from fmkit.errors import ArgumentError, CombinationError, did_you_mean
from fmkit.paths.base import PathSample, ProbabilityPath
from fmkit.randomness import normal_like
from fmkit.shapes import (
    check_batch,
    check_ends,
    check_finite,
    check_like,
    check_time,
    readable,
    seems_finite,
    widen,
    widened,
)
from fmkit.sources import Convolved, Scaled, Source

VIEWS = ("state", "velocity", "data", "noise", "latent", "score")

# How near to a singular time a conversion may come: the time is moved inwards by this much, an error of its order.
NUDGE = 1e-5


class Coefficients(NamedTuple):
    """The path's functions at times `(B,)`, each `(B,)` in float64; gamma is None where there is no latent noise."""

    alpha: Tensor
    sigma: Tensor
    gamma: Tensor | None = None


class AffinePath(ProbabilityPath):
    """A path x_t = alpha(t) x1 + sigma(t) x0 [+ gamma(t) z]; its author writes `alpha` and `sigma`.

    The functions take times of any shape and work elementwise. Three hooks have defaults: `gamma` (None), `rates`
    (the functions' derivatives, by forward-mode differentiation) and `interval` (all of [0, 1]).

    Examples:
        >>> import fmkit, torch
        >>> class Smooth(fmkit.paths.AffinePath):
        ...     def alpha(self, t):
        ...         return 3 * t**2 - 2 * t**3
        ...     def sigma(self, t):
        ...         return 1 - self.alpha(t)
        >>> point = Smooth().sample(0.5, torch.zeros(4, 2), torch.ones(4, 2))
        >>> point.x[0].tolist(), point.velocity[0].tolist()
        ([0.5, 0.5], [1.5, 1.5])
    """

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The weight of the data: near 0 at the beginning, near 1 at the end."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The weight of the source: near 0 at the end."""

    def gamma(self, t: Tensor) -> Tensor | None:
        """The standard deviation of the path's own noise z, or None (the default) if it has none."""
        return None

    def rates(self, t: Tensor) -> Coefficients:
        """(alpha', sigma', gamma') at times `(B,)`: the default differentiates the functions in forward mode."""
        gamma = None if self.gamma(t) is None else _derivative(self.gamma, t)
        return Coefficients(_derivative(self.alpha, t), _derivative(self.sigma, t), gamma)

    def coefficients(self, t: Tensor) -> Coefficients:
        """(alpha, sigma, gamma) at times `(B,)`."""
        return Coefficients(_like(self.alpha(t), t), _like(self.sigma(t), t), _like(self.gamma(t), t))

    def sample(
        self, t: Tensor | Real, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None
    ) -> PathSample:
        check_ends(x0, x1)
        t = check_time(t, x1, self.interval)
        check_generator(generator)
        at, rate = self.coefficients(t), self.rates(t)
        alpha, sigma, alpha_rate, sigma_rate = widened((at.alpha, at.sigma, rate.alpha, rate.sigma), x1)
        x = torch.addcmul(alpha * x1, sigma, x0)
        velocity = torch.addcmul(alpha_rate * x1, sigma_rate, x0)
        if readable(x) and not seems_finite(x):  # what an end is not, x is not either: 0 times infinity is NaN
            check_finite(x0, "x0")
            check_finite(x1, "x1")
        if at.gamma is None:
            return PathSample(t, x, x0, x1, velocity)
        if rate.gamma is None:
            raise ArgumentError(f"{type(self).__name__} has a gamma, and its rates leave out gamma'")
        z = normal_like(x, generator)
        return PathSample(t, x + widen(at.gamma, z) * z, x0, x1, velocity + widen(rate.gamma, z) * z, z)

    @property
    def has_latent(self) -> bool:
        """Whether the path adds noise of its own."""
        return self.gamma(torch.tensor(self.interval, dtype=torch.float64)) is not None

    @property
    def _latents(self) -> int:
        return 3 if self.has_latent else 2

    def start(self, source: Source, t0: float | None = None) -> Source:
        """The law of sigma(t0) x0 + gamma(t0) z; the data's part alpha(t0) x1 is left out, as in the paper."""
        check_instance("source", source, Source)
        t: Any = self.interval[0] if t0 is None else t0
        at = self.coefficients(check_time(t, torch.zeros(1, dtype=torch.float64), self.interval))
        sigma, gamma = at.sigma.item(), 0.0 if at.gamma is None else at.gamma.item()
        scaled = source if sigma == 1.0 else Scaled.of(source, sigma)
        return scaled if gamma == 0.0 else Convolved.of(scaled, gamma)

    def convert(self, t: Tensor | Real, x: Tensor, want: str, **given: Tensor) -> Tensor:
        """The view `want` of points `x` at times `t`, from the views given.

        Args:
            t: `(B,)` times, or one number.
            x: `(B, *event)` points: the state.
            want: one of "velocity", "data", "noise", "latent", "score".
            **given: other views of the points, each `(B, *event)`: one where the path has no latent noise, two else.

        The score is that of a Gaussian latent: z where the path has one, else x0, which must then come from a standard
        Gaussian source coupled independently; the caller answers for that (objectives and fields check it).

        Raises:
            ArgumentError: for an unknown view, points that are not finite, or a view of another shape, dtype or device
                than x.
            CombinationError: if the views given do not determine the one wanted.

        Examples:
            >>> import fmkit, torch
            >>> x, u = torch.tensor([[0.5]]), torch.tensor([[2.0]])
            >>> fmkit.paths.CondOT().convert(0.25, x, "data", velocity=u)
            tensor([[2.]])
        """
        check_batch(x)
        for name, view in given.items():
            _check_view(name, VIEWS[1:])
            check_batch(check_like(view, x, name), name)
        _check_view(want, VIEWS)
        return self.combine(t, x, want, **given)

    def combine(self, t: Tensor | Real, x: Tensor, want: str, **given: Tensor) -> Tensor:
        """`convert`, of points that are known to be such: a solver may try ones that are not finite."""
        if want in given:
            return given[want]
        weights = self._solve(check_time(t, x, self.interval), want, tuple(given))
        views = (x, *given.values())
        return sum((widen(w, x) * view for w, view in zip(weights, views, strict=True)), torch.zeros_like(x))

    def _solve(self, t: Tensor, want: str, given: tuple[str, ...]) -> list[Tensor]:
        """The weights w, each `(B,)`, with want = w0 state + sum of w_i given_i, row by row over the latents."""
        size = self._latents
        if len(given) != size - 1:
            raise CombinationError(
                f"{type(self).__name__} has {size} latents: {want!r} needs the state and {size - 1} view(s) more, "
                f"got {', '.join(given) or 'none'}"
            )
        if size == 2 and "latent" in (want, *given):
            raise CombinationError(f"{type(self).__name__} has no latent noise, so no view of it")
        t = t.clamp(*self.determined(want, *given))
        at, rate = self.coefficients(t), self.rates(t)
        rows = [_row(view, at, rate, size) for view in ("state", *given)]
        target = _row(want, at, rate, size)
        # Cramer's rule: replace one row by the wanted one. Exact where a view is asked from itself, and cheap.
        whole = _determinant(rows)
        return [_determinant([*rows[:i], target, *rows[i + 1 :]]) / whole for i in range(size)]

    @torch.compiler.assume_constant_result  # a compiled graph holds the two numbers
    def determined(self, want: str, *given: str) -> tuple[float, float]:
        """The part of the interval on which the state and the views `given` determine the one wanted.

        At an end where they do not (alpha = t² has alpha' = 0 at t = 0), or where the one wanted is infinite (a score
        where sigma = 0), the end moves inwards by 1e-5.

        Raises:
            CombinationError: if they determine it nowhere, because two of them say the same.
        """
        return self._determined(want, *given)

    @functools.lru_cache(maxsize=32)  # noqa: B019 - a handful of entries per path, and a path lives as long as a run
    def _determined(self, want: str, *given: str) -> tuple[float, float]:
        low, high = self.interval
        size = self._latents
        t = torch.linspace(low, high, 9, dtype=torch.float64)
        at, rate = self.coefficients(t), self.rates(t)
        whole = _determinant([_row(view, at, rate, size) for view in ("state", *given)])
        reach = torch.stack(_row(want, at, rate, size)).abs().sum(0)
        singular = ~(whole.abs() > 1e-9) | ~torch.isfinite(whole) | ~torch.isfinite(reach)
        if bool(singular[1:-1].all()):
            raise CombinationError(f"the state and {', '.join(given)} do not determine {want!r}: they say the same")
        return low + NUDGE * bool(singular[0]), high - NUDGE * bool(singular[-1])


def _check_view(name: Any, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ArgumentError(f"{name!r} is not a view of a point{did_you_mean(str(name), known)}")


def _derivative(function: Callable[[Tensor], Tensor | None], t: Tensor) -> Tensor:
    # Forward mode wants a tensor out of the function, and an author may well return a number.
    return time_derivative(lambda s: _like(function(s), s), t)[1]


def _like(value: Any, t: Tensor) -> Any:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.full_like(t, value)
    return value if value.shape == t.shape else value + torch.zeros_like(t)


def _row(view: str, at: Coefficients, rate: Coefficients, size: int) -> list[Any]:
    row: list[Any]
    zero, one = torch.zeros_like(at.alpha), torch.ones_like(at.alpha)
    match view:
        case "state":
            row = [at.alpha, at.sigma, at.gamma]
        case "velocity":
            row = [rate.alpha, rate.sigma, rate.gamma]
        case "data":
            row = [one, zero, zero]
        case "noise":
            row = [zero, one, zero]
        case "latent":
            row = [zero, zero, one]
        case _:
            row = [zero, -1 / at.sigma] if at.gamma is None else [zero, zero, -1 / at.gamma]
    return row[:size]


def _determinant(rows: list[list[Tensor]]) -> Tensor:
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), *rest = rows
    minor = [[row[j] for j in range(3)] for row in rest]
    (d, e, f), (g, h, i) = minor
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
