"""Time samplers: at which times a network is trained.

Each draws u in [0, 1] from its own density, shifts it towards the noise, and maps it into the interval asked for.
The shift (Esser et al., arXiv 2403.03206, eq. 23) acts on the noise's time tau = 1 - u: tau -> s tau / (1 + (s-1) tau).
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_device, check_generator, check_instance, check_number, shown
from fmkit.errors import ArgumentError
from fmkit.parts import Part
from fmkit.shapes import check_answer, readable, time_dtype


class TimeSampler(Part):
    """The base class of every time sampler. A subclass implements `draw`, times in [0, 1].

    Args:
        shift: s > 0; above 1 more times near the noise, below 1 more near the data.

    Raises:
        ArgumentError: if the shift is not positive and finite.
    """

    group: ClassVar[str] = "fmkit.time_samplers"

    def __init__(self, shift: float = 1.0) -> None:
        super().__init__()
        if not 0 < shift < math.inf:
            raise ArgumentError(f"shift is {shift}, expected a positive number")
        self.shift = shift

    @abc.abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """Times in [0, 1] from as many uniform numbers (inverse of the distribution function), in float64.

        Raises:
            ArgumentError: for numbers outside [0, 1]; `check_shares` looks at that.
        """

    def sample(
        self,
        n: int,
        interval: tuple[float, float] = (0.0, 1.0),
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """`(n,)` times inside `interval`, in float64.

        Stratified, one falls into each n-th of the probability, in order: each still has the sampler's law if one
        looks at a random one of them, and a mean over them has less variance.

        Raises:
            ArgumentError: if n is below 1, the interval no two finite numbers in order, or the generator none.
        """
        n, (low, high) = check_count("n", n), _ends(interval)
        check_generator(generator)
        check_instance("stratified", stratified, bool)
        device = torch.device(check_device(device) or "cpu")
        u = torch.rand(n, generator=generator, dtype=time_dtype(device), device=device)
        if stratified:
            u = (torch.arange(n, dtype=u.dtype, device=device) + u) / n
        u = check_answer(self.draw(u), u, f"{type(self).__name__}.draw")
        if self.shift != 1.0:
            tau = 1 - u
            u = 1 - self.shift * tau / (1 + (self.shift - 1) * tau)
        if (low, high) == (0.0, 1.0):
            return u
        return (low + (high - low) * u).clamp_(low, high)


class UniformTime(TimeSampler):
    """Every time equally often: the paper's choice."""

    def draw(self, uniform: Tensor) -> Tensor:
        return check_shares("uniform", uniform)


class LogitNormal(TimeSampler):
    """logit(u) ~ N(mean, std²): more of the middle (Esser et al., arXiv 2403.03206).

    Args:
        mean: location; positive leans towards the data.
        std: spread, > 0.
        shift: see `TimeSampler`.

    Raises:
        ArgumentError: if std is not positive, or the mean is not finite.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> None:
        super().__init__(shift)
        if not 0 < std < math.inf or not math.isfinite(mean):
            raise ArgumentError(f"mean is {mean} and std {std}, expected a finite mean and a positive std")
        self.mean, self.std = mean, std

    def draw(self, uniform: Tensor) -> Tensor:
        tiny = torch.finfo(
            check_shares("uniform", uniform).dtype
        ).tiny  # u = 0 would be -inf, which the sigmoid takes; this only avoids NaN
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform.clamp_min(tiny)))


class UShaped(TimeSampler):
    """Density proportional to cosh(a (u - 1/2)): more of both ends (Lee et al., arXiv 2405.20320).

    Args:
        a: how steep, > 0.
        shift: see `TimeSampler`.

    Raises:
        ArgumentError: if a is not positive.
    """

    def __init__(self, a: float = 4.0, shift: float = 1.0) -> None:
        super().__init__(shift)
        if not 0 < a < 100:
            raise ArgumentError(f"a is {a}, expected a number in (0, 100)")
        self.a = a

    def draw(self, uniform: Tensor) -> Tensor:
        return 0.5 + torch.asinh((2 * check_shares("uniform", uniform) - 1) * math.sinh(self.a / 2)) / self.a


def check_shares(name: str, u: Any) -> Tensor:
    """`u` itself, if it is a floating-point tensor of numbers in [0, 1], as far as that can be seen for nothing."""
    if not isinstance(u, Tensor) or not u.is_floating_point() or u.device.type == "meta" or u.numel() == 0:
        raise ArgumentError(f"{name} is {shown(u)}, expected a floating-point tensor of numbers in [0, 1]")
    if readable(u) and not torch.equal(u, u.clamp(0, 1)):
        low, high = (float(v) for v in torch.aminmax(u))
        raise ArgumentError(f"{name} ranges over [{low:.6g}, {high:.6g}], expected numbers in [0, 1]")
    return u


def _ends(interval: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise ArgumentError(f"interval is {shown(interval)}, expected two times")
    low, high = (check_number("an end of the interval", end) for end in interval)
    if low >= high:
        raise ArgumentError(f"interval is {shown(interval)}, expected its beginning before its end")
    return low, high
