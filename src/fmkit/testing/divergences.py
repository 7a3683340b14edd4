"""The laws of a divergence, on a field whose trace is known.

    v(t, x) = (1 + t) A x + c x * x + b,   div v = (1 + t) trace A + 2 c . x      (A full, not symmetric; * by element)

An exact one gives the trace; the columns of a stochastic one are unbiased, and their spread tells the error of their
mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fmkit.divergence import Divergence
from fmkit.errors import ArgumentError
from fmkit.testing.precision import has_float32s_digits
from fmkit.testing.randomness import Globals, preserved, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults

LAWS = Laws("divergence")
EVENTS: tuple[tuple[int, ...], ...] = ((3,), (), (1,), (2, 2), (1, 4, 4))
ROWS, TIME = 6, 0.4
DRAWS, COPIES = 200, 128  # of probes; and of each point, so that a bias of a hundredth shows
UNLIKELY = 5.0  # standard errors: once in a million draws


@dataclass(frozen=True)
class Field:
    """The field of one event shape, its points and its trace."""

    linear: Tensor
    square: Tensor
    shift: Tensor
    x: Tensor

    @staticmethod
    def of(event: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Field:
        d, generator = math.prod(event), seeded(3)
        linear, square, shift, x = (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in ((d, d), (d,), (d,), (ROWS, *event))
        )
        return Field(linear, square, shift, x)

    def __call__(self, t: Any, x: Tensor) -> Tensor:
        flat, time = x.reshape(len(x), -1), torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        return ((1 + time) * (flat @ self.linear.T) + self.square * flat**2 + self.shift).reshape(x.shape)

    def trace(self, x: Tensor) -> Tensor:
        """`(B,)` at the time TIME."""
        return (1 + TIME) * self.linear.trace() + 2 * (self.square * x.reshape(len(x), -1)).sum(1)


@dataclass
class Trial:
    """A divergence on trial."""

    divergence: Divergence

    @staticmethod
    @preserved()
    def of(divergence: Divergence) -> Trial:
        if not isinstance(divergence, Divergence):
            raise ArgumentError(f"got a {type(divergence).__name__}, expected a Divergence")
        return Trial(divergence)

    def __call__(self, f: Callable[..., Tensor], x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The velocity, and the estimates `(B, k)`, of one draw of probes."""
        return self.divergence.rate(f, x, seeded(seed))(TIME, x)

    def misses(self) -> Tensor:
        """What estimates of many draws are off by, `(DRAWS, COPIES, B, k)`; the trace is some 20."""
        if self.divergence.exact:
            raise NotChecked("it is exact")
        field = Field.of((4,))
        field = replace(field, linear=field.linear + 3 * torch.eye(4, dtype=torch.float64))
        x = field.x.repeat(COPIES, 1)
        drawn = torch.stack([self(field, x, seed)[1].detach() for seed in range(DRAWS)])
        return (drawn - field.trace(x)[:, None]).reshape(DRAWS, COPIES, ROWS, -1)


def check_divergence(divergence: Divergence) -> Report:
    """Try every law of a divergence.

    Args:
        divergence: exact or stochastic, as it will be used.

    Raises:
        ArgumentError: if this is no divergence.

    Examples:
        >>> import fmkit
        >>> from fmkit.testing import check_divergence
        >>> check_divergence(fmkit.ExactDivergence()).ok
        True
    """
    return LAWS.report(divergence, Trial.of(divergence))


@LAWS("shape", "it gives the velocity and (B, k) finite estimates, of any event and in the precision of x")
def _shape(trial: Trial) -> Measured:
    wrong, k = [], trial.divergence.estimates
    for event in EVENTS:
        for dtype in (torch.float32, torch.float64):
            field, shown = Field.of(event, dtype), f" for {dtype} {(ROWS, *event)}"
            x = field.x.clone()
            velocity, estimates = trial(field, x)
            if not torch.equal(x, field.x):
                wrong.append(f"the points were changed in place{shown}")
            if velocity.dtype != dtype or not torch.allclose(velocity, field(TIME, field.x), rtol=1e-5, atol=1e-6):
                wrong.append(f"the velocity is not the field's{shown}")
            if (tuple(estimates.shape), estimates.dtype) != ((ROWS, k), dtype):
                wrong.append(f"the estimates are {estimates.dtype} {tuple(estimates.shape)}, k = {k}{shown}")
            elif not bool(torch.isfinite(estimates).all()):
                wrong.append(f"the estimates are not finite{shown}")
            elif dtype == torch.float64 and has_float32s_digits(estimates):
                wrong.append(f"the estimates have the digits of float32 only{shown}")
    return faults(wrong)


@LAWS("seeds", "the generator is the only randomness there is, and draws once for an integration", ["shape"])
def _seeds(trial: Trial) -> Measured:
    field, before = Field.of((4,)), Globals()
    rate = trial.divergence.rate(field, field.x, seeded(1))
    first, wrong = rate(TIME, field.x)[1], before.touched()
    stir(1)
    if not torch.equal(first, rate(TIME, field.x)[1]):
        wrong.append("two evaluations in one integration differ: the probes are drawn anew")
    if not torch.equal(first, trial(field, field.x, 1)[1]):
        wrong.append("two integrations from one seed differ")
    if not trial.divergence.exact and torch.equal(first, trial(field, field.x, 2)[1]):
        wrong.append("two seeds give the same estimates: the generator is not used")
    return faults(wrong)


@LAWS("rows", "rows of a batch are independent of each other", ["seeds"])
def _rows(trial: Trial) -> Measured:
    field, worst, where = Field.of((4,)), 0.0, ""
    rate = trial.divergence.rate(field, field.x, seeded(0))
    whole = rate(TIME, field.x)[1]
    for i in range(ROWS):
        others = -1.3 * field.x
        others[i] = field.x[i]
        error = (rate(TIME, others)[1][i] - whole[i]).abs().max().item()
        if not error <= worst:
            worst, where = error, f"of row {i} with other points in the other rows"
    return Measured(worst, 1e-9, "change", where)


@LAWS("trace", "an exact one gives the trace of the Jacobian, of any event", ["shape"])
def _trace(trial: Trial) -> Measured:
    if not trial.divergence.exact:
        raise NotChecked("it is stochastic")
    worst, where = 0.0, ""
    for event in EVENTS:
        field = Field.of(event)
        error = (trial(field, field.x)[1] - field.trace(field.x)[:, None]).abs().max().item()
        if not error <= worst:
            worst, where = error, f"for events of shape {event}"
    return Measured(worst, 1e-9, "error", where)


@LAWS("unbiased", "the mean of each column over many draws is the trace", ["seeds"])
def _unbiased(trial: Trial) -> Measured:
    each = trial.misses().mean(1)  # copies may share their probes, draws do not
    worst = Measured(0.0, UNLIKELY, "standard errors from the trace:")
    tries = {f"column {j}": each[..., j].mean(1) for j in range(each.shape[2])}
    tries |= {f"row {i}": each[:, i].mean(1) for i in range(ROWS)} | {"all": each.mean((1, 2))}
    for name, off in tries.items():
        apart = off.mean().abs().item() / (off.std().item() / math.sqrt(DRAWS) + 1e-9)
        if not apart <= worst.value:
            worst = worst._replace(value=apart, where=f"{name}: off by {off.mean().item():.3g}")
    return worst


@LAWS("error", "the spread of the columns tells the error of their mean", ["unbiased"])
def _error(trial: Trial) -> Measured:
    if not trial.divergence.exact and trial.divergence.estimates < 2:
        raise NotChecked("one estimate has no spread")
    misses = trial.misses()
    told = misses.var(3).mean() / misses.shape[3]
    seen = misses.mean(3).square().mean()
    ratio = (told / seen).sqrt().item()
    miss = abs(math.log(ratio)) if ratio > 0 else math.inf
    return Measured(miss, 0.15, "logarithm of the error told over the error seen:", f"their ratio is {ratio:.3g}")


@LAWS("gradients", "estimates can be differentiated in the points and in the field's weights", ["seeds"])
def _gradients(trial: Trial) -> Measured:
    field, step, worst = Field.of((4,)), 1e-3, Measured(0.0, 1e-6, "error")
    weight = field.linear.clone()

    def total(x: Tensor, linear: Tensor) -> Tensor:
        return trial(Field(linear, field.square, field.shift, field.x), x)[1].sum()

    given = (field.x.clone().requires_grad_(), weight.requires_grad_())
    found = torch.autograd.grad(total(*given), given)  # raises where there is nothing to differentiate
    for name, place, gradient in zip(("the points", "the weights"), (0, 1), found, strict=True):
        for index in range(4):
            ends = []
            for sign in (1, -1):
                at = [value.detach().clone() for value in given]
                at[place].view(-1)[index * 5 % at[place].numel()] += sign * step
                ends.append(total(at[0], at[1]).item())
            want = (ends[0] - ends[1]) / (2 * step)  # no error but rounding: an estimate is linear in both
            error = abs(gradient.reshape(-1)[index * 5 % gradient.numel()].item() - want)
            if not error <= worst.value:
                worst = worst._replace(value=error, where=f"in {name}")
    return worst
