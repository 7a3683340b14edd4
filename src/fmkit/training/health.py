"""Whether a run is well: a step whose loss or gradient is not finite, and how the loss lies over time.

Neither costs a step anything worth measuring: per-sample losses are only kept as they come, and looked at when they
are logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fmkit.objectives import Batch
from fmkit.training.engine import Engine

# Of equal length, over a path's interval.
BINS = 8
KEPT = 64  # shares of a batch, before they are added up
NAMED = 5  # samples, in a message


class LossOverTime:
    """The mean loss in each of `BINS` parts of the path's interval, since it was last asked for.

    Sums are made in the order of the steps, so they do not depend on when they are made.

    Args:
        interval: of the path.
        engine: which process this is; each keeps the sums of its own rows.
        device: of the losses.
    """

    def __init__(self, interval: tuple[float, float], engine: Engine, device: torch.device) -> None:
        self.interval, self.engine = interval, engine
        self._sums = torch.zeros(2, BINS, dtype=torch.float64, device=device)  # of losses, and how many
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._of_step = 0

    def begin(self) -> None:
        """A step begins."""
        if len(self._kept) > KEPT:
            self.settle()
        self._of_step = len(self._kept)

    def keep(self, t: Tensor, value: Tensor) -> None:
        """Some samples of a step: times and losses, `(n,)` each."""
        self._kept.append((t, value.detach()))

    def drop(self) -> None:
        """Forget the step, which is skipped."""
        del self._kept[self._of_step :]

    @property
    def spoilt(self) -> list[int]:
        """Which of the step's samples have no finite loss."""
        values = [value for _, value in self._kept[self._of_step :]]
        return torch.isfinite(torch.cat(values)).logical_not().nonzero().flatten().tolist() if values else []

    def settle(self) -> None:
        """Add what was kept to the sums."""
        if not self._kept:
            return
        t, value = (torch.cat([kept[i].reshape(-1) for kept in self._kept]).double() for i in (0, 1))
        begin, end = self.interval
        bins = ((t - begin) / (end - begin) * BINS).long().clamp_(0, BINS - 1).to(value.device)
        self._sums[0].index_add_(0, bins, value)
        self._sums[1].index_add_(0, bins, torch.ones_like(value))
        self._kept.clear()
        self._of_step = 0

    def take(self) -> dict[str, float]:
        """The means over all processes, as `loss_t0` .. `loss_t7`, without bins that nothing fell into; begun anew."""
        self.settle()
        sums, counts = self.engine.sum(self._sums).tolist()
        self._sums.zero_()
        return {f"loss_t{i}": s / n for i, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}

    def state(self) -> Tensor:
        """`(ranks, 2, BINS)`: the sums of every process."""
        self.settle()
        every = self._sums.new_zeros(self.engine.ranks, *self._sums.shape)
        every[self.engine.rank] = self._sums
        return self.engine.sum(every)

    def load(self, every: Tensor) -> None:
        """Take up a state; where there were more or fewer processes, rank 0 takes all."""
        if len(every) == self.engine.ranks:
            self._sums.copy_(every[self.engine.rank])
        else:
            self._sums.copy_(every.sum(0) if self.engine.main else torch.zeros_like(self._sums))


def not_finite(names: Iterable[str], parameters: Iterable[Tensor]) -> list[str]:
    """The names of weights whose gradient is not finite here."""
    return [
        name
        for name, p in zip(names, parameters, strict=True)
        if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]


def of_samples(spoilt: list[int], batch: Batch, whence: Callable[[Tensor], list[int] | None]) -> str:
    """Whose loss was not finite, in words; nothing where that is not known.

    Args:
        spoilt: rows of the batch.
        batch: what the step was trained on.
        whence: finds samples of a batch in the data.
    """
    if not spoilt:
        return ""
    if len(spoilt) == len(batch.x1) > 1:
        return f"for all {len(spoilt)} samples of its batch"
    found = whence(batch.x1[spoilt[:NAMED]])
    more = ", ..." if len(spoilt) > NAMED else ""
    if found is None:
        return f"for {_listed('row', spoilt[:NAMED])}{more} of its batch"
    return f"for {_listed('sample', found)}{more} of the data"


def _listed(word: str, numbers: list[int]) -> str:
    return f"{word}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
