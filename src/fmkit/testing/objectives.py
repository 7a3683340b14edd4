"""The laws of an objective, on data from one Gaussian, where every conditional mean is known.

    x1 ~ N(m, s²), x0 ~ N(0, 1), x_t = t x1 + (1 - t) x0 (CondOT),   V = t² s² + (1 - t)²
    E[x1 | x] = m + (t s² / V) (x - t m),   E[x0 | x] = ((1 - t) / V) (x - t m),   velocity = E[x1 | x] - E[x0 | x]
    score = -(x - t m) / V

A regression is least at the conditional mean, so there its slope in any direction is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmkit.couplings import Independent
from fmkit.errors import ArgumentError
from fmkit.fields import VectorField, ask
from fmkit.objectives import Batch, Loss, Objective
from fmkit.objectives.regression import Regression
from fmkit.paths import CondOT
from fmkit.shapes import mean_event
from fmkit.sources import Gaussian
from fmkit.testing.randomness import Globals, preserved, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults

LAWS = Laws("objective")
MANNERS = ("shape", "seeds", "rows")
MEAN = 0.6
# Narrow data leaves little of a target undetermined, so a slope stands out; wide data is not nearly a point.
WIDE, NARROW = 0.8, 0.05
VIEWS = ("velocity", "data", "noise", "score")


def conditional_mean(view: str, t: Tensor, x: Tensor, std: float = WIDE) -> Tensor:
    """E[view | x_t = x] for data N(m, std²): `t` is `(B,)`, `x` is `(B, *event)`."""
    t = t.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    away = (x - t * MEAN) / (t**2 * std**2 + (1 - t) ** 2)
    data, noise = MEAN + t * std**2 * away, (1 - t) * away
    return {"velocity": data - noise, "data": data, "noise": noise, "score": -away}[view]


class Knows(torch.nn.Module):
    """A network that answers scale * (conditional mean) + shift; both have a number for each of two coordinates."""

    def __init__(self, view: str, scale: Any = (1.0, 1.0), shift: Any = (0.0, 0.0), std: float = WIDE) -> None:
        super().__init__()
        self.view, self.std = view, std
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.shift = torch.nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.conditions: list[Any] = []

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        self.conditions.append(cond)
        return self.scale.to(x.dtype) * conditional_mean(self.view, t, x, self.std) + self.shift.to(x.dtype)


@dataclass
class Trial:
    """An objective on CondOT, and the view its network predicts."""

    objective: Objective
    view: str
    reason: str = ""

    @staticmethod
    @preserved()
    def of(objective: Objective) -> Trial:
        """With the view the objective names, or else the one whose exact network implies the exact velocity."""
        if not isinstance(objective, Objective):
            raise ArgumentError(f"got a {type(objective).__name__}, expected an Objective")
        named = getattr(objective, "view", None)
        if named in VIEWS:
            return Trial(objective, named)
        errors: dict[str, float] = {}
        for view in VIEWS:
            try:
                errors[view] = Trial(objective, view).field_error()[0]
            except Exception:
                continue
        if not errors:
            return Trial(objective, "velocity", "its network is none that answers (t, x) with a view of the path")
        return Trial(objective, min(errors, key=lambda v: math.inf if math.isnan(errors[v]) else errors[v]))

    def need(self) -> None:
        if self.reason:
            raise NotChecked(self.reason)

    def batch(self, n: int, dtype: torch.dtype = torch.float64, std: float = WIDE, seed: int = 0) -> Batch:
        x0, x1 = torch.randn(2, n, 2, generator=seeded(seed), dtype=torch.float64)
        return Batch(x0.to(dtype), (MEAN + std * x1).to(dtype))

    def loss(self, network: torch.nn.Module, batch: Batch, seed: int = 1) -> Loss:
        return self.objective.loss(network, CondOT(), batch, generator=seeded(seed))

    def field(self) -> VectorField:
        return self.objective.field(Knows(self.view), CondOT(), source=Gaussian(), coupling=Independent())

    def field_error(self) -> tuple[float, float]:
        """The greatest error of the implied velocity, and its time."""
        field, n = self.field(), 64
        low, high = field.interval
        t = torch.linspace(low, high, n, dtype=torch.float64)
        x = torch.randn(n, 2, generator=seeded(2), dtype=torch.float64)
        with torch.no_grad():
            error = (field(t, x) - conditional_mean("velocity", t, x)).abs().amax(1)
        return error.max().item(), t[int(error.argmax())].item()


def check_objective(objective: Objective) -> Report:
    """Try every law of an objective.

    An objective whose network is not of the form (t, x) is reported as not checked.

    Raises:
        ArgumentError: if this is no objective.

    Examples:
        >>> from fmkit.objectives import ScoreMatching
        >>> from fmkit.testing import check_objective
        >>> class Wrong(ScoreMatching):
        ...     def target(self, path, point):
        ...         return -super().target(path, point)
        >>> [finding.id for finding in check_objective(Wrong()).failed]
        ['objective.minimiser']
    """
    return LAWS.report(objective, Trial.of(objective))


@LAWS("shape", "the loss has one finite value for each sample, and times inside the path's interval")
def _shape(trial: Trial) -> Measured:
    trial.need()
    wrong = []
    for dtype in (torch.float32, torch.float64):
        batch, kept = trial.batch(32, dtype), trial.batch(32, dtype)
        loss = trial.loss(Knows(trial.view), batch)
        if not (torch.equal(batch.x0, kept.x0) and torch.equal(batch.x1, kept.x1)):
            return faults(["the batch was changed in place"])
        if loss.value.shape != (32,) or loss.t.shape != (32,):
            wrong.append(f"value has shape {tuple(loss.value.shape)} and t {tuple(loss.t.shape)}, expected (32,)")
        elif loss.value.dtype != dtype:
            wrong.append(f"value is {loss.value.dtype} for {dtype}")
        if not bool(torch.isfinite(loss.value).all()):
            wrong.append("the loss is not finite")
        if not bool(((loss.t >= 0) & (loss.t <= 1)).all()):
            wrong.append("times lie outside [0, 1]")
    return faults(wrong)


@LAWS("seeds", "the generator is the only randomness there is", ["shape"])
def _seeds(trial: Trial) -> Measured:
    trial.need()
    batch, before = trial.batch(32), Globals()
    first = trial.loss(Knows(trial.view), batch)
    wrong = before.touched()
    stir(1)
    again, other = trial.loss(Knows(trial.view), batch), trial.loss(Knows(trial.view), batch, seed=2)
    if not torch.equal(first.value, again.value) or not torch.equal(first.t, again.t):
        wrong.append("two losses from one seed differ")
    if torch.equal(first.t, other.t):
        wrong.append("two seeds give the same times: the generator is not used")
    return faults(wrong)


@LAWS("rows", "the loss of a sample does not depend on the other samples of its batch", ["seeds"])
def _rows(trial: Trial) -> Measured:
    trial.need()
    network, batch, other = Knows(trial.view, (0.8, 1.1)), trial.batch(8), trial.batch(8, seed=5)
    whole, worst, where = trial.loss(network, batch).value, 0.0, ""
    for row in range(8):
        only = (torch.arange(8) == row)[:, None]
        mixed = Batch(torch.where(only, batch.x0, other.x0), torch.where(only, batch.x1, other.x1))
        error = ((trial.loss(network, mixed).value[row] - whole[row]).abs() / (1e-3 + whole[row].abs())).item()
        if not error <= worst:
            worst, where = error, f"of row {row} with other samples in the other rows"
    return Measured(worst, 1e-6, "relative change", where)


@LAWS("gradient", "gradients reach the network", ["shape"])
def _gradient(trial: Trial) -> Measured:
    trial.need()
    network = Knows(trial.view, (0.5, 0.6), (0.3, 0.2))
    trial.loss(network, trial.batch(256)).value.mean().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    bad = [n for n, g in grads.items() if g is None or not bool(g.isfinite().all()) or bool((g == 0).any())]
    return faults([f"no gradient for {n}" for n in bad])


@LAWS("value", "a regression's loss is its weight times the squared error of its target, up to one factor", MANNERS)
def _value(trial: Trial) -> Measured:
    trial.need()
    if not isinstance(trial.objective, Regression):
        raise NotChecked("it is no Regression, which has a target and a weight")
    network, batch, path = Knows(trial.view, (0.8, 1.1), (0.1, -0.2)), trial.batch(256), CondOT()
    with torch.no_grad():
        loss = trial.loss(network, batch)
        point = path.sample(loss.t, batch.x0, batch.x1)
        error = mean_event((network(loss.t, point.x) - trial.objective.target(path, point)).square())
        weight = trial.objective.weight(path, loss.t)
    if weight is not None and not bool((weight.isfinite() & (weight >= 0)).all()):
        row = int((~weight.isfinite() | (weight < 0)).nonzero()[0, 0])
        return faults([f"the weight at t = {loss.t[row].item():.4g} is {weight[row].item():.4g}, expected one >= 0"])
    ratio = loss.value / (error if weight is None else error * weight)
    off = (ratio / ratio.median() - 1).abs().nan_to_num(math.inf)
    row = int(off.argmax())
    return Measured(off[row].item(), 1e-4, "relative error", f"at t = {loss.t[row].item():.4g}")


@LAWS("minimiser", "the loss is least, and its slope 0, where the network answers with the conditional mean", MANNERS)
def _minimiser(trial: Trial) -> Measured:
    trial.need()
    worst = Measured(0.0, 6.0, "standard errors off:")
    for std in (WIDE, NARROW):
        batch, h = trial.batch(120_000, std=std), 1e-3

        def value(scale: Any = (1.0, 1.0), shift: Any = (0.0, 0.0), batch: Batch = batch, std: float = std) -> Tensor:
            with torch.no_grad():
                return trial.loss(Knows(trial.view, scale, shift, std), batch).value

        for i, one in enumerate(torch.eye(2, dtype=torch.float64)):
            for name in ("scale", "shift"):
                up, down = ({name: ((name == "scale") + way * h * one).tolist()} for way in (1, -1))
                slope = (value(**up) - value(**down)) / (2 * h)
                score = abs(slope.mean().item()) / max(slope.std().item() / math.sqrt(len(slope)), 1e-12)
                if not score <= worst.value:
                    said = f"still changes by {slope.mean().item():.3g} per unit of {name}"
                    worst = worst._replace(
                        value=score, where=f"the loss of the exact {trial.view} {said}, coordinate {i}"
                    )
        best = value().mean().item()
        for name, factor in {"0.7 times": 0.7, "1.3 times": 1.3, "minus": -1.0}.items():
            other = value((factor, factor)).mean().item()
            if not other > best:
                said = f"{name} the exact {trial.view} has a loss of {other:.4g}, itself {best:.4g}"
                return Measured(best - other, 0.0, "loss above a wrong network's:", said)
    return worst


@LAWS("field", "the exact network implies the exact marginal velocity")
def _field(trial: Trial) -> Measured:
    trial.need()
    field = trial.field()
    if not isinstance(field, VectorField):
        return faults([f"field returns a {type(field).__name__}, expected a VectorField"])
    low, high = field.interval
    if not 0 <= low < high <= 1:
        return faults([f"the field's interval is [{low:g}, {high:g}], expected a part of [0, 1]"])
    error, t = trial.field_error()
    return Measured(error, 1e-6, "error of the velocity", f"at t = {t:.4g}, from a network that knows the {trial.view}")


@LAWS("condition", "the network sees the batch's conditions as they are", ["shape"])
def _condition(trial: Trial) -> Measured:
    trial.need()
    network, cond, batch = Knows(trial.view), torch.arange(16), trial.batch(16)
    trial.loss(network, Batch(batch.x0, batch.x1, cond))
    seen = [c for c in network.conditions if isinstance(c, Tensor)]
    return faults([] if seen and any(torch.equal(c, cond) for c in seen) else ["the conditions did not arrive"])


@LAWS("question", "a question that speaks for the loss has its times and its values, whatever the answer", ["shape"])
def _question(trial: Trial) -> Measured:
    trial.need()
    if not trial.objective.asks_once:
        raise NotChecked("its loss is more than one question")
    worst, path = 0.0, CondOT()
    for seed, scale in enumerate((1.0, 0.5, -2.0)):
        network, batch, cond = (
            Knows(trial.view, (scale, scale), (0.3, -0.1)),
            trial.batch(64, seed=seed),
            torch.arange(64),
        )
        batch = Batch(batch.x0, batch.x1, cond)
        loss = trial.loss(network, batch)
        asked = trial.objective.question(network, path, batch, generator=seeded(1))
        if asked is None:
            return faults(["question answers None, and the base class would have said so"])
        if not torch.equal(asked.t, loss.t):
            return faults(["its times are others than the loss's, from the same generator"])
        if not (isinstance(asked.cond, Tensor) and torch.equal(asked.cond, cond)):
            return faults(["the conditions did not arrive"])
        values = asked.loss(ask(network, asked.t, asked.x, asked.cond))
        error = ((values - loss.value).abs() / (1e-9 + loss.value.abs())).max().item()
        worst = error if not error <= worst else worst
    return Measured(worst, 1e-6, "relative error of its loss")
