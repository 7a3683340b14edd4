"""A coupling: which source sample meets which data sample.

    pair(x0, x1, cond0, cond1) -> (i0, i1): x0[i0[k]] travels to x1[i1[k]]

Indices, not samples, are returned, so conditions and labels follow their samples, and nothing is dropped or doubled
where the plan is a permutation.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_generator, check_instance
from fmkit.errors import ArgumentError
from fmkit.parts import Part
from fmkit.shapes import check_batch
from fmkit.sources import Source


class Coupling(Part):
    """The base class of every coupling. A subclass implements `pair`."""

    group: ClassVar[str] = "fmkit.couplings"

    @property
    def independent(self) -> bool:
        """Whether x0 and x1 stay independent: what score conversions rest on."""
        return False

    @property
    def whole(self) -> bool:
        """Whether `pair` wants all of the data that `prepare` was given as its x1, rather than a batch of it."""
        return False

    @property
    def own(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Pairs of its own, once prepared, that training takes in place of the data: x0, x1 and the data's row each.

        x1 is in the data's units, and the row is whose condition the pair has. None, the default: it pairs what it is
        shown.
        """
        return None

    @property
    def figures(self) -> dict[str, float]:
        """What a fit found out about itself, for the metrics; nothing by default."""
        return {}

    @abc.abstractmethod
    def pair(
        self,
        x0: Tensor,
        x1: Tensor,
        cond0: Any = None,
        cond1: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Indices (i0, i1), int64 on the device of the samples: rows of x0 and the rows of x1 they meet.

        Args:
            x0: `(B, *event)` source samples.
            x1: `(B, *event)` data samples; `(N, *event)`, all of them, where `whole`.
            cond0: conditions of x0, or None.
            cond1: conditions of x1, or None.
            generator: the only randomness there is.

        Raises:
            ArgumentError: if the batches do not fit each other, are empty or not finite; `check_batches` makes that
                check in one line.
        """

    def prepare(self, source: Source, x1: Tensor, cond: Any = None, *, seed: int = 0) -> Iterator[float]:
        """Fit whatever is fitted before training, yielding progress in [0, 1]; the state is saved with the run."""
        check_instance("source", source, Source)
        check_batch(x1, "x1")
        check_count("seed", seed, least=0)
        return iter(())


def resize(coupling: Coupling, names: Iterable[str], state: Mapping[str, Tensor], prefix: str) -> None:
    """Make buffers as long as they are in the state that is about to be loaded: how long was not known before."""
    for name in names:
        if prefix + name in state:
            device = getattr(coupling, name).device
            setattr(coupling, name, torch.empty_like(state[prefix + name], device=device))


def check_batches(
    x0: Tensor, x1: Tensor, cond0: Any = None, cond1: Any = None, generator: torch.Generator | None = None
) -> None:
    """Refuse what would give a meaningless pairing: batches that are empty, unequal, not floating point or not finite.

    Raises:
        ArgumentError: for these, conditions of another length, or a generator that is none.
    """
    check_batch(x0, "x0")
    check_batch(x1, "x1")
    if x0.shape != x1.shape:
        raise ArgumentError(f"x0 has shape {tuple(x0.shape)} and x1 {tuple(x1.shape)}; pairing needs equal shapes")
    check_conditions("cond0", cond0, len(x1))
    check_conditions("cond1", cond1, len(x1))
    check_generator(generator)


def check_conditions(name: str, cond: Any, n: int) -> None:
    """Refuse conditions that are not one for each sample.

    Raises:
        ArgumentError: if `cond` has a length, and another than n.
    """
    if isinstance(cond, Sized) and len(cond) != n:
        raise ArgumentError(f"{name} has {len(cond)} conditions for {n} samples, expected one for each")
