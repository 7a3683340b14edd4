"""Signs that a run goes wrong though nothing is broken. Each is said once, as a `HealthWarning`, and the run goes on.

What is looked at: the first batch (is the data of the size that networks and the path expect?), the lines of metrics
(does the loss leap?), and the weights at each checkpoint (do they, and their average, move at all?).
"""

from __future__ import annotations

import contextlib
import statistics
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import FmkitError, HealthWarning
from fmkit.fields.embeddings import ConditionEmbedding
from fmkit.objectives import Batch
from fmkit.paths import ProbabilityPath
from fmkit.training.state import Run

LARGE = 10.0  # a mean, or a standard deviation or its inverse, beyond which data are of no usual size
LEFT = 0.3  # of the data at a path's beginning, or of the source at its end
LINES, FEWEST = 20, 5  # of metrics, that a loss is compared with
LEAP, DEVIATIONS = 3.0, 10.0  # of a loss over the median of these


class Signs:
    """Watches one run.

    Args:
        run: the run, before its first step.
        path: of its pairs.
    """

    def __init__(self, run: Run, path: ProbabilityPath) -> None:
        self.run, self.path = run, path
        self._said: set[str] = set()
        self._losses: deque[float] = deque(maxlen=LINES)
        self._sums = self._fingerprints()

    def of_batch(self, batch: Batch) -> None:
        """The first batch, in the model's units: is it of the size that networks and the path expect?"""
        if "data" in self._said:
            return
        self._said.add("data")
        x1 = batch.x1
        if not self.path.euclidean or x1.numel() < 2 or self.run.step:
            return
        mean, deviation = x1.double().mean().item(), x1.double().std().item()
        if deviation and not (1 / LARGE <= deviation <= LARGE and abs(mean) <= LARGE):
            self._say(
                f"the data have mean {mean:.3g} and standard deviation {deviation:.3g} in the network's units, where "
                "about 0 and 1 are expected: standardize them (a transform of the data, as Affine(mean, std))"
            )
        elif deviation:
            with contextlib.suppress(FmkitError):  # zeros need not be points of a path
                for said in self._of_ends(batch.x0, x1):
                    self._say(said)

    def _of_ends(self, x0: Tensor, x1: Tensor) -> Iterator[str]:
        """Does the path forget the data at its beginning, and the source at its end?"""
        begin, end = (torch.full((len(x1),), t, dtype=torch.float64, device=x1.device) for t in self.path.interval)

        def at(t: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
            generator = torch.Generator(x1.device).manual_seed(0)  # as much noise of the path's own in each
            return self.path.sample(t, x0, x1, generator=generator).x.double()

        nothing = torch.zeros_like(x1)
        first, last = at(begin, x0, nothing), at(end, x0, x1)
        remembered = (at(begin, x0, x1) - first).std().item() / max(first.std().item(), 1e-12)
        drowned = (last - at(end, nothing, x1)).std().item() / max(x1.double().std().item(), 1e-12)
        name = type(self.path).__name__
        if remembered > LEFT:
            yield (
                f"{name} begins with {remembered:.2g} times as much of the data as of the source, which sampling knows "
                "nothing of: scale the data down, or begin the path with more noise"
            )
        if drowned > LEFT:
            yield (
                f"{name} ends with {drowned:.2g} times as much of the source as of the data: scale the data up, or end "
                "the path with less noise"
            )

    def of_line(self, record: dict[str, Any]) -> None:
        """A line of metrics: does the loss leap?"""
        loss = record.get("loss")
        if loss is None:
            return
        if len(self._losses) >= FEWEST and "leap" not in self._said:
            usual = statistics.median(self._losses)
            spread = statistics.median(abs(v - usual) for v in self._losses)
            if loss > LEAP * usual > 0 and loss > usual + DEVIATIONS * spread:
                self._said.add("leap")
                self._say(
                    f"the loss was {loss:.3g} over the steps up to {record['step']}, {loss / usual:.2g} times what it "
                    f"was before ({usual:.3g}): lower the learning rate, clip gradients, or look for outliers"
                )
        self._losses.append(loss)

    def of_weights(self) -> None:
        """Have the weights moved at all since the beginning, and does their average follow them?"""
        run, before = self.run, self._sums
        if run.step == run.skipped or {"weights", "average"} <= self._said:
            return
        self._sums = now = self._fingerprints()
        moved = not _unmoved(now[0], before[0])
        if "weights" not in self._said:
            self._said.add("weights")  # later they may rest, where there is nothing left to learn
            if not moved:
                self._say(
                    f"no weight has moved in the steps up to {run.step} (learning rate "
                    f"{run.optimizer.param_groups[0]['lr']:.3g}): raise the learning rate, or see why gradients are 0"
                )
        if moved and run.ema is not run.network and _unmoved(now[1], before[1]) and "average" not in self._said:
            self._said.add("average")
            self._say(
                f"the averaged weights, which sampling uses, have not moved in the steps up to {run.step}, though the "
                f"weights have: ema is {run.settings.ema!r}; lower it, as 0.999"
            )

    @torch.no_grad()
    def _fingerprints(self) -> tuple[Tensor, Tensor]:
        """The sums of the trained weights and of their averages, which change with any of them."""
        run = self.run
        names = {name for name, p in run.network.named_parameters() if p.requires_grad}
        averages = [run.engine.local(p) for name, p in run.ema.named_parameters() if name in names]
        sums = (torch.stack([p.double().sum() for p in each]) for each in (run.parameters, averages))
        weights, average = (run.engine.add_parts(each) for each in sums)
        return weights, average

    def _say(self, text: str) -> None:
        if self.run.engine.main:
            warnings.warn(text, HealthWarning, stacklevel=6)


def _unmoved(now: Tensor, before: Tensor) -> bool:
    """Weights that began at 0 can move by as little as they like; next to the others that is nothing."""
    return bool((now - before).abs().max() <= 1e-12 * before.abs().max().clamp(min=1.0))


def check_labels(network: torch.nn.Module, cond: Any) -> None:
    """Refuse labels that the network has no class for, before a rare one of them ends the run.

    Raises:
        ArgumentError: with their range and that of the classes.
    """
    if isinstance(cond, Tensor) and cond.ndim == 1:
        for module in network.modules():
            if isinstance(module, ConditionEmbedding) and module.classes is not None:
                module.check_labels(cond, len(cond))
