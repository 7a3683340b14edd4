"""One optimizer step: the loss of a batch share by share, its gradient, and the update.

A loss or a gradient that is not finite ends the run with an error that says where it came from, or, where the settings
allow it, the step is left out. On a processor every step is looked at. On a GPU looking would wait for it, so there it
is done when a line of metrics is due, unless steps may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import TrainingError
from fmkit.objectives import Batch, Objective
from fmkit.paths import ProbabilityPath
from fmkit.randomness import seed_dropout, stream
from fmkit.training.compiled import compiled_step, none_used
from fmkit.training.health import LossOverTime, of_samples
from fmkit.training.shares import Share, shares
from fmkit.training.state import Run

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Stepper:
    """Takes the steps of a run.

    Args:
        run: its state, which a step moves on.
        path: of the pairs.
        objective: what the network regresses on.
        whence: where in the data samples lie, for an error's message; see `Pairing.whence`.

    Attributes:
        rate: the learning rate of the last step.
    """

    def __init__(
        self, run: Run, path: ProbabilityPath, objective: Objective, whence: Callable[[Tensor], list[int] | None]
    ) -> None:
        self.run, self.path, self.objective, self.whence = run, path, objective, whence
        self.settings = run.settings
        self.rate = 0.0
        self._compiled = compiled_step(run.network, objective, run.settings, self._autocast)
        self._norm: Tensor | None = None
        self._looks = run.device.type == "cpu" or run.settings.skip_nonfinite > 0

    def take(self, batch: Batch) -> None:
        """One optimizer step, unless its loss or gradient is not finite and it may be left out.

        Raises:
            TrainingError: if either is not finite and it may not, or no weight has a part in the loss.
        """
        run, s = self.run, self.settings
        for group in run.optimizer.param_groups:
            group["lr"] = self.rate = run.learning_rate()
        for parameter in run.trained:  # as optimizer.zero_grad, which takes a tenth of a small step to get there
            parameter.grad = None
        run.over_time.begin()
        losses = []
        for share in shares(len(batch.x1), run.engine, s.accumulate, s.across_ranks):
            seed_dropout(s.seed, run.step, run.device, share.number)
            losses.append(self._backward(batch, share))
        loss = run.engine.sum(losses[0] if len(losses) == 1 else torch.stack(losses).sum())
        self._norm = None
        if self._looks and not math.isfinite(loss.item()):
            self._leave_out(batch, f"the loss is {loss.item()}")
            return
        run.engine.add_gradients(run.trained, run.parameters)
        due = (run.step + 1) % s.log_every == 0 or run.step + 1 == s.steps
        if s.clip is not None or s.skip_nonfinite or due:
            self._norm = run.gradient_norm()
            if self._looks and not run.scaler.is_enabled() and not math.isfinite(self._norm.item()):
                self._leave_out(batch, f"{run.not_finite()} is not finite, though the loss is")
                return
        run.update(self._norm)
        run.total, run.counted = run.total + loss, run.counted + 1

    def held_out(self, batch: Batch, number: int) -> Tensor:
        """The mean loss of the averaged weights on the `number`-th held-out batch, with draws of its own."""
        (share,) = shares(len(batch.x1), self.run.engine, 1, across=True)
        return self._loss(self.run.ema, batch, share, number, None)

    def figures(self) -> dict[str, Any]:
        """A line of metrics of the steps since the last: their mean loss, the last rate and gradient norm.

        Raises:
            TrainingError: if one of them is not finite.
        """
        run, record = self.run, {"step": self.run.step, "lr": self.rate}
        if run.counted:  # not every step was left out
            mean = (run.total / run.counted).item()
            if not math.isfinite(mean):
                raise self._refusal(run.step - 1, f"the loss is {mean}")
            record = {"step": run.step, "loss": mean, "lr": self.rate}
        norm = None if self._norm is None else self._norm.item()
        if norm is not None and math.isfinite(norm):
            record["gradient_norm"] = norm
        elif norm is not None and not run.scaler.is_enabled():  # float16 learns its scale by infinities
            raise self._refusal(run.step - 1, f"{run.not_finite()} is not finite, though the loss is")
        run.total, run.counted = torch.zeros_like(run.total), 0
        return record | run.over_time.take()

    def _leave_out(self, batch: Batch, said: str) -> None:
        """Go on without this step, with a line in the metrics; or end the run."""
        run = self.run
        if run.skipped == self.settings.skip_nonfinite:
            alone = run.engine.ranks * self.settings.accumulate == 1
            raise self._refusal(run.step, said, of_samples(run.over_time.spoilt, batch, self.whence) if alone else "")
        run.skipped, self._norm = run.skipped + 1, None
        run.over_time.drop()
        run.note({"step": run.step + 1, "skipped": run.skipped})

    def _refusal(self, step: int, said: str, whose: str = "") -> TrainingError:
        """What ends a run whose loss or gradient is not finite."""
        at = f"{said} at step {step} (learning rate {self.rate:.3g}, seed {self.settings.seed})"
        skipped = self.run.skipped
        already = f"{skipped} steps have been skipped already; " if skipped else ""
        return TrainingError(
            f"{at}{', ' + whose if whose else ''}; {already}the last checkpoint is untouched. Lower the learning rate, "
            "clip gradients, look for outliers in the data, or allow some steps to be skipped (skip_nonfinite)"
        )

    def _backward(self, batch: Batch, share: Share) -> Tensor:
        """A share's part of the mean loss of the batch, and its gradients in the weights' `grad`."""
        run = self.run
        if self._compiled is not None:
            generator = self._stream("objective", run.step)
            question = self.objective.question(run.network, self.path, batch, generator=generator)
            if question is not None:
                question = share.question(question)
                loss, value = self._compiled.backward(question, share.weight)
                run.over_time.keep(question.t, value)
                return loss
        loss = self._loss(run.network, batch, share, run.step, run.over_time)
        if not loss.requires_grad:
            raise none_used(run.network)
        run.scaler.scale(loss).backward()
        return loss.detach()

    def _loss(
        self, network: torch.nn.Module, batch: Batch, share: Share, step: int, over_time: LossOverTime | None
    ) -> Tensor:
        """A share's part of the mean loss of a batch, in training if `over_time` is to hear of it, else held-out."""
        generator = self._stream("validation-objective" if over_time is None else "objective", step)
        network, ema = share.network(network), share.network(self.run.ema)
        with self._autocast():
            out = self.objective.loss(network, self.path, batch, ema=ema, step=step, generator=generator)
        if over_time is not None:
            whole = share.end - share.begin == len(out.value)  # slicing costs what a kernel does
            t, value = (out.t, out.value) if whole else (part[share.begin : share.end] for part in (out.t, out.value))
            over_time.keep(t, value)
        return share.mean(out.value)

    def _stream(self, purpose: str, step: int) -> torch.Generator:
        """Of the whole batch, unless each rank draws its own rows; held-out batches are whole."""
        apart = purpose == "objective" and not self.settings.across_ranks
        return stream(self.settings.seed, purpose, step, self.run.engine.rank if apart else 0, self.run.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST.get(self.settings.precision)
        return nullcontext() if dtype is None else torch.autocast(self.run.device.type, dtype=dtype)
