"""A vector field: dx/dt = v(t, x), the right-hand side that solvers integrate.

A network is any module `(t, x, cond) -> tensor`. What it predicts (a velocity, the data, the noise, a score) is the
objective's choice, and `PredictionField` turns the prediction into a velocity through the path's conversions.
"""

from __future__ import annotations

import abc
import inspect
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fmkit.arguments import shown
from fmkit.errors import ArgumentError, CombinationError, did_you_mean
from fmkit.parts import Part
from fmkit.paths import AffinePath, ProbabilityPath
from fmkit.shapes import batch_time, check_answer, check_batch, check_data, check_time, widen

PREDICTIONS = ("velocity", "data", "noise", "score")


class Stochastic(NamedTuple):
    """What an SDE solver reads: the velocity, the noise estimate and its standard deviation (score = -noise/std)."""

    velocity: Tensor
    noise: Tensor
    std: Tensor


class Dropped(NamedTuple):
    """Conditions of which some are missing, for a field that `drops_rows`."""

    cond: Tensor  # (B, ...), one for each sample
    rows: Tensor  # (B,) bool: where the field answers as if there were none


class VectorField(Part):
    """The base class of every field. A subclass implements `forward`.

    A field `offers` protocols by name: each is a method `(t, x, cond)` of that name, which a solver may `read`. A
    protocol of two times (an average velocity over an interval) takes both, first.

    Attributes:
        event_shape: of the points it takes; None where it takes any.
    """

    group: ClassVar[str] = "fmkit.fields"
    admits: ClassVar[type] = torch.nn.Module  # which `as_field` makes a field of
    event_shape: tuple[int, ...] | None = None

    @abc.abstractmethod
    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        """dx/dt at times `t` (B,) and points `x` (B, *event), with the shape of x."""

    def __call__(self, t: Tensor | Real, x: Tensor, cond: Any = None) -> Tensor:
        """`forward`, of times inside the interval (also one number for all) and finite points.

        Raises:
            ArgumentError: for other times or points, or if `forward` answers with no velocity of theirs.
        """
        at = check_time(t, check_batch(x), self.interval)
        return check_answer(super().__call__(_own(t, at), x, cond), x, type(self).__name__)

    @property
    def interval(self) -> tuple[float, float]:
        """The times the field can be evaluated at."""
        return (0.0, 1.0)

    @property
    def offers(self) -> frozenset[str]:
        """The protocols this field speaks."""
        return frozenset({"velocity"})

    @property
    def euclidean(self) -> bool:
        """Whether the divergence in the coordinates of x is the rate of the log-density (not so on a manifold)."""
        return True

    @property
    def drops_rows(self) -> bool:
        """Whether `cond` may be `Dropped`: samples with and without their condition in one call, as guidance asks."""
        return False

    def velocity(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        """The protocol `velocity`: what `forward` computes, for solvers.

        A solver may try any time and any point, and learns from NaN that it went too far: values are not looked at.
        """
        at = batch_time(t, check_data(x))
        return super().__call__(_own(t, at), x, cond)

    def stochastic(self, t: Tensor, x: Tensor, cond: Any = None) -> Stochastic:
        """The protocol `stochastic`: velocity, noise and its standard deviation."""
        raise CombinationError(f"{type(self).__name__} does not know its noise, so it cannot drive an SDE")


def _own(t: Any, at: Tensor) -> Tensor:
    """The times as they were given, in a precision that a network may have chosen; `at` where they were a number."""
    return t if isinstance(t, Tensor) and t.ndim else at


class ModuleField(VectorField):
    """Any torch module `(t, x)` or `(t, x, cond)` as a field: t is `(B,)`, x `(B, *event)`.

    Args:
        module: the user's network; its weights are saved with a flow, its code is not (`Flow.load(..., using=[...])`).

    Raises:
        ArgumentError: if the module does not take t and x.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        if not isinstance(module, torch.nn.Module):
            raise ArgumentError(f"module is a {type(module).__name__}, expected a torch.nn.Module (t, x, cond)")
        self.module = module
        self._takes_cond = _takes_cond(module)

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        if cond is not None and not self._takes_cond:
            raise ArgumentError(f"{type(self.module).__name__} takes (t, x) and was given a condition")
        t = network_time(t, x)
        out = self.module(t, x, cond) if self._takes_cond else self.module(t, x)
        return check_answer(out, x, type(self.module).__name__)


def _takes_cond(module: torch.nn.Module) -> bool:
    name = type(module).__name__
    no_field = isinstance(module, Part) and not isinstance(module, VectorField)
    if no_field or type(module).forward is torch.nn.Module.forward:
        raise ArgumentError(f"{name} has no forward of (t, x, cond), expected a field or a network")
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a scripted or compiled module: trust it
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    if len(positional) < 2:
        raise ArgumentError(f"{name}.forward takes {len(positional)} argument(s), expected (t, x) or (t, x, cond)")
    # A third parameter with a default other than None is an option of the module's, not a condition.
    return len(positional) > 2 and positional[2].default in (inspect.Parameter.empty, None)


def as_field(network: torch.nn.Module) -> VectorField:
    """A field made of `network`: itself if it is one, else wrapped in a `ModuleField`.

    Raises:
        ArgumentError: if it is no torch module, or one that does not take t and x.
    """
    return network if isinstance(network, VectorField) else ModuleField(network)


def network_of(field: VectorField) -> VectorField:
    """What was trained: the network inside a field of its predictions, or the field itself."""
    return field.network if isinstance(field, PredictionField) else field


class PredictionField(VectorField):
    """The velocity that a network's prediction implies on a path.

    Args:
        network: predicts `view` at (t, x, cond).
        path: the path it was trained on.
        view: "velocity", "data", "noise" or "score".
        interval: where the prediction determines the velocity; the path's interval by default.
        gaussian: whether x0 is standard normal and coupled independently, so that the noise is known and SDEs can be
            driven (`offers` then contains "stochastic").
    """

    path: Any  # a ProbabilityPath, and an AffinePath wherever its conversions are used

    def __init__(
        self,
        network: VectorField,
        path: ProbabilityPath,
        view: str = "velocity",
        interval: tuple[float, float] | None = None,
        gaussian: bool = False,
    ) -> None:
        super().__init__()
        if view not in PREDICTIONS:
            raise ArgumentError(f"{view!r} is nothing a network predicts here{did_you_mean(str(view), PREDICTIONS)}")
        if view != "velocity" and not isinstance(path, AffinePath):
            raise CombinationError(f"{type(path).__name__} is not affine: a prediction of {view} gives no velocity")
        self.network = as_field(network)
        self.path, self.view, self.gaussian = path, view, gaussian
        low, high = path.interval if interval is None else (float(interval[0]), float(interval[1]))
        if not path.interval[0] <= low < high <= path.interval[1]:
            raise ArgumentError(f"interval is {interval}, expected one inside the path's, {list(path.interval)}")
        self._interval = low, high

    @property
    def interval(self) -> tuple[float, float]:
        return self._interval

    @property
    def offers(self) -> frozenset[str]:
        known = self.gaussian and isinstance(self.path, AffinePath) and not self.path.has_latent
        return frozenset({"velocity", "stochastic"} if known else {"velocity"})

    @property
    def euclidean(self) -> bool:
        return self.path.euclidean and self.network.euclidean

    @property
    def event_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return self.network.event_shape

    @property
    def drops_rows(self) -> bool:
        return self.network.drops_rows

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        prediction = ask(self.network, t, x, cond)
        if self.view == "velocity":
            return prediction
        return self.path.combine(t, x, "velocity", **{self.view: prediction})

    def stochastic(self, t: Tensor, x: Tensor, cond: Any = None) -> Stochastic:
        if "stochastic" not in self.offers:
            raise CombinationError(
                "an SDE needs the noise of a standard Gaussian source under the independent coupling, on an affine "
                f"path without latent noise; this flow on {type(self.path).__name__} does not have it"
            )
        t = batch_time(t, check_data(x))
        given = {self.view: ask(self.network, t, x, cond)}
        velocity = self.path.combine(t, x, "velocity", **given)
        noise = self.path.combine(t, x, "noise", **given)
        return Stochastic(velocity, noise, widen(self.path.coefficients(t).sigma, x))


def network_time(t: Tensor | Real, x: Tensor) -> Tensor:
    """Times `(B,)` in the network's precision, but never below float32: in bfloat16 1 - 1e-3 is 1."""
    narrow = torch.float32 if x.dtype == torch.bfloat16 or not x.is_floating_point() else x.dtype
    return batch_time(t, x).to(narrow)


def predict(network: torch.nn.Module, t: Tensor | Real, x: Tensor, cond: Any = None) -> Tensor:
    """The network's answer at times inside its interval, [0, 1] for a plain module, and at finite points.

    Raises:
        ArgumentError: for other times or points, what is no network, or an answer that has not the shape of x.
    """
    interval = network.interval if isinstance(network, VectorField) else (0.0, 1.0)
    return ask(network, check_time(t, check_batch(x), interval), x, cond)


def ask(network: torch.nn.Module, t: Tensor | Real, x: Tensor, cond: Any = None) -> Tensor:
    """`predict` without a look at the values, which a path or a solver answers for.

    Times are float64 up to here and are cast to the network's precision once.
    """
    t = network_time(t, check_data(x))
    if not callable(network) or isinstance(network, type):
        raise ArgumentError(f"network is {shown(network)}, expected a function of (t, x) or (t, x, cond)")
    if isinstance(network, Part) and not isinstance(network, VectorField):
        raise ArgumentError(f"network is {shown(network)}, expected a field or a network of (t, x) or (t, x, cond)")
    answer = network.velocity if isinstance(network, VectorField) else network
    out = answer(t, x) if cond is None else answer(t, x, cond)
    return check_answer(out, x, getattr(network, "__name__", type(network).__name__))
