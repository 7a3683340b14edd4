"""SDE solvers: the whole family of SDEs that share a flow's marginals (Song et al., arXiv 2011.13456, eq. 38-40).

    dx = (v + (g²/2) score) dt + g dW,   score = -noise/std

for any g. With g² = 2 lam std the drift is v - lam noise, finite where std = 0. lam = 0 is the ODE. Backward in time
the score changes sign: dx = v dt - lam noise |dt| + g dW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import shown
from fmkit.errors import ArgumentError
from fmkit.fields import Stochastic
from fmkit.randomness import normal_like
from fmkit.solvers.base import Function, State
from fmkit.solvers.fixed_step import FixedStep
from fmkit.solvers.grids import TimeGrid


class SDESolver(FixedStep):
    """The base class of both.

    Args:
        steps: number of steps, >= 1.
        lam: strength of the noise, >= 0: a number, or a function of t (a function cannot be saved).
        grid: where the steps lie; equal steps by default.

    Raises:
        ArgumentError: if lam is negative or not finite.
    """

    reads = "stochastic"
    between = False

    def __init__(
        self, steps: int = 100, lam: float | Callable[[float], float] = 1.0, grid: TimeGrid | None = None
    ) -> None:
        super().__init__(steps, grid)
        if not callable(lam) and not 0 <= lam < math.inf:
            raise ArgumentError(f"lam is {lam}, expected a number >= 0")
        self.lam = lam

    def init(self, x: State, generator: torch.Generator | None) -> Any:
        if isinstance(x, tuple):
            raise ArgumentError(f"{type(self).__name__} integrates points only; a log-density needs an ODE solver")
        return generator

    def _read(self, f: Function, t: float, x: State) -> Stochastic:
        at = f(t, x)
        if not isinstance(at, Stochastic):
            raise ArgumentError(f"f returned {shown(at)}, expected a Stochastic: velocity, noise and its std")
        return at

    def _drift(self, at: Stochastic, t: float, dt: float) -> Tensor:
        """What |dt| multiplies: the velocity in the direction of time, minus lam noise."""
        return math.copysign(1.0, dt) * at.velocity - self._strength(t) * at.noise

    def _variance(self, at: Stochastic, t: float) -> Tensor:
        return 2 * self._strength(t) * at.std

    def _strength(self, t: float) -> float:
        return self.lam(t) if callable(self.lam) else self.lam


class EulerMaruyama(SDESolver):
    """Euler-Maruyama: weak order 1, one evaluation a step."""

    order = 1

    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        at = self._read(f, t, x)
        kick = normal_like(x, memory) * torch.sqrt(self._variance(at, t) * abs(dt))
        return x + abs(dt) * self._drift(at, t, dt) + kick, memory


class HeunSDE(SDESolver):
    """Heun's method for additive noise: trapezoid drift and variance, weak order 2, two evaluations a step."""

    order = 2

    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        at, noise = self._read(f, t, x), normal_like(x, memory)
        drift, variance = self._drift(at, t, dt), self._variance(at, t)
        ahead = f(t + dt, x + abs(dt) * drift + noise * torch.sqrt(variance * abs(dt)))
        mean_drift = (drift + self._drift(ahead, t + dt, dt)) / 2
        mean_variance = (variance + self._variance(ahead, t + dt)) / 2
        return x + abs(dt) * mean_drift + noise * torch.sqrt(mean_variance * abs(dt)), memory
