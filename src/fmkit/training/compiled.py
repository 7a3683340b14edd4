"""A step's loss and gradients as one compiled graph: `Settings.compile`.

Compiling the network alone leaves automatic differentiation's own work at every step, which a small network does not
win back. Here the loss of a question (see `Objective.question`) is a function of the weights, and torch.compile is
given that function with its gradient (torch.func.grad_and_value), so that little but kernels is left between the path
and the optimizer.

What draws random numbers inside, as dropout does, draws others than without compiling; still by the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from fmkit.compiling import warn_of
from fmkit.errors import TrainingError
from fmkit.fields import ask
from fmkit.objectives import Objective, Question
from fmkit.training.settings import Settings

Autocast = Callable[[], AbstractContextManager[Any]]


def compiled_step(
    network: torch.nn.Module, objective: Objective, settings: Settings, autocast: Autocast
) -> CompiledStep | None:
    """What takes a run's compiled steps; None where it does not ask for them, or, with a warning, cannot have them."""
    if not settings.compile:
        return None
    if not objective.asks_once:
        _without(f"{type(objective).__name__} has more to ask than one question")
        return None
    if settings.precision == "float16":
        _without("float16 scales its gradients; bfloat16 needs no scaling")
        return None
    return CompiledStep(network, autocast)


class Asked(torch.nn.Module):
    """A network as what `ask` makes of it, so that it can be called with other weights."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, t: Tensor, x: Tensor, cond: Any) -> Tensor:
        return ask(self.network, t, x, cond)


class CompiledStep:
    """Mean losses with the gradients of the weights, from one graph; eagerly once compiling has failed.

    Args:
        network: what is trained.
        autocast: the context of its arithmetic.
        backend: torch.compile's.
    """

    def __init__(self, network: torch.nn.Module, autocast: Autocast, backend: str = "inductor") -> None:
        self.asked = Asked(network)
        self.named = {name: p for name, p in self.asked.named_parameters() if p.requires_grad}
        self.autocast, self.backend, self.failed = autocast, backend, False
        self._compiled: Callable[..., Any] | None = None

    def backward(self, question: Question, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """The mean loss of a question times `share`, whose gradients are added to those of the weights; each loss."""
        if self._compiled is None:
            self._find_used(question)
            # A break in the graph would leave the differentiation outside of it, slower than no graph at all.
            function = grad_and_value(self._mean_loss, has_aux=True)
            self._compiled = torch.compile(function, backend=self.backend, fullgraph=True, dynamic=False)
        if self.failed:
            return self._eagerly(question, share)
        weights = list(self.named.values())
        try:
            with torch.no_grad():  # grad_and_value differentiates nevertheless, and nothing beyond it is kept
                gradients, (loss, value) = self._compiled([p.detach() for p in weights], question)
        except Exception as error:  # whatever a compiler raises
            out = self._eagerly(question, share)  # a mistake of the network's is no fault of compiling: it is raised
            self.failed = True
            _without(error)
            return out
        if share != 1:
            torch._foreach_mul_(gradients, share)
        for parameter, gradient in zip(weights, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss * share, value

    def _find_used(self, question: Question) -> None:
        """Keep the weights that the loss depends on, as `backward` does: no gradient is not a gradient of zeros."""
        devices = {p.device for p in self.named.values() if p.device.type == "cuda"}
        with torch.random.fork_rng(sorted(devices, key=str)), torch.enable_grad():
            mean, _ = self._mean_loss(list(self.named.values()), question)
            if not mean.requires_grad:
                raise none_used(self.asked.network)
            gradients = torch.autograd.grad(mean, list(self.named.values()), allow_unused=True)
        self.named = {k: p for (k, p), g in zip(self.named.items(), gradients, strict=True) if g is not None}

    def _mean_loss(self, weights: list[Tensor], question: Question) -> tuple[Tensor, Tensor]:
        with self.autocast():
            named = dict(zip(self.named, weights, strict=True))
            value = question.loss(functional_call(self.asked, named, (question.t, question.x, question.cond)))
            return value.mean(), value

    def _eagerly(self, question: Question, share: float) -> tuple[Tensor, Tensor]:
        mean, value = self._mean_loss(list(self.named.values()), question)
        loss = mean * share
        loss.backward()
        return loss.detach(), value.detach()


def none_used(network: torch.nn.Module) -> TrainingError:
    """What ends a run in which there is nothing to train."""
    return TrainingError(f"the loss of {type(network).__name__} depends on none of its weights: none is used")


def _without(reason: Exception | str) -> None:
    warn_of("the step", reason, "is taken as it is", stacklevel=4)
