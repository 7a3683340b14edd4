"""An objective: what a network regresses on, and the field that its answer implies."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fmkit.couplings import Coupling
from fmkit.fields import VectorField
from fmkit.parts import Part
from fmkit.paths import ProbabilityPath
from fmkit.shapes import mean_event
from fmkit.sources import Source


class Batch(NamedTuple):
    """A coupled batch: `x0` and `x1` of shape (B, *event), and the data's condition."""

    x0: Tensor
    x1: Tensor
    cond: Any = None


class Loss(NamedTuple):
    """`value` (B,) per sample, the times `t` (B,) it was taken at, and further figures to log."""

    value: Tensor
    t: Tensor
    logs: dict[str, Tensor]


class Question(NamedTuple):
    """What a regression asks a network, and what it would like to hear.

    Attributes:
        t: `(B,)` times, float64.
        x: `(B, *event)` points.
        cond: the data's condition, or None.
        target: `(B, *event)`, the answer that costs nothing.
        weight: `(B,)`, or None for 1.
    """

    t: Tensor
    x: Tensor
    cond: Any
    target: Tensor
    weight: Tensor | None

    def loss(self, answer: Tensor) -> Tensor:
        """`(B,)`: the weighted mean square of what the answer is off by."""
        value = mean_event(mse_loss(answer, self.target, reduction="none"))
        return value if self.weight is None else value * self.weight.to(value.dtype)


class Objective(Part):
    """The base class of every objective. It owns its time sampler."""

    group: ClassVar[str] = "fmkit.objectives"

    def question(
        self,
        network: torch.nn.Module,
        path: ProbabilityPath,
        batch: Batch | tuple[Tensor, ...],
        *,
        generator: torch.Generator | None = None,
    ) -> Question | None:
        """All of `loss` but the network's answer, for an objective that asks it once.

        None, the default, says that there is more to this objective; its steps cannot be compiled then.
        """
        return None

    @property
    def asks_once(self) -> bool:
        """Whether a question speaks for the loss: not where a subclass wrote another loss and left the question."""
        question, loss = (next(c for c in type(self).__mro__ if n in vars(c)) for n in ("question", "loss"))
        return question is not Objective and issubclass(question, loss)

    @abc.abstractmethod
    def loss(
        self,
        network: torch.nn.Module,
        path: ProbabilityPath,
        batch: Batch | tuple[Tensor, ...],
        *,
        ema: torch.nn.Module | None = None,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The loss of each sample of a batch (x0, x1[, cond]).

        Args:
            network: `(t, x)` or `(t, x, cond)` to a tensor like x.
            path: a path this objective can be trained on (see `check`).
            batch: coupled samples.
            ema: the averaged network, for objectives that consult it.
            step: the training step, for objectives with a schedule.
            generator: the only randomness there is, besides dropout.
        """

    @abc.abstractmethod
    def field(
        self,
        network: torch.nn.Module,
        path: ProbabilityPath,
        *,
        source: Source | None = None,
        coupling: Coupling | None = None,
    ) -> VectorField:
        """The field that the network's answer implies.

        `source` and `coupling` tell whether the noise is known (SDE sampling); unknown, the field offers a velocity.
        """

    def check(self, path: ProbabilityPath, source: Source, coupling: Coupling) -> None:
        """Refuse, with the reason, parts that have no meaning together.

        Raises:
            CombinationError: if they have none.
        """
