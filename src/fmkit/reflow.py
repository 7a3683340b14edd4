"""Reflow: pairs from a flow that is trained already, for a straighter one (rectified flow, round by round).

    (x0, x1) with x1 the end of the trained flow's way from x0        (Liu, Gong and Liu, arXiv 2209.03003)

Under these pairs the straight ways hardly cross, so the flow trained on them bends less than the one they came from, at
the price of what that one had wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_instance
from fmkit.couplings.base import Coupling, check_batches, resize
from fmkit.errors import ArgumentError, CombinationError
from fmkit.flow import Flow
from fmkit.randomness import stream
from fmkit.shapes import check_batch
from fmkit.sources import Source
from fmkit.specs import describe

# Pairs made at a time.
BATCH = 1024


class Reflow(Coupling):
    """Training takes pairs of this coupling's own: where a trained flow carries fresh x0, for the data's conditions.

    The pairs are made before training and saved with the run; the data gives the conditions, the event shape and,
    unless told otherwise, how many. x1 is in the data's units.

    Args:
        flow: a run's folder, or the file of a saved flow.
        pairs: how many, at least 1; as many as there is data by default.

    Raises:
        SavedFileError: on use, if there is no such flow, or it is damaged.
        CombinationError: on use, if the flow begins with another law than this run, or has other events.
    """

    x0: Tensor
    x1: Tensor
    done: Tensor

    def __init__(self, flow: str, pairs: int | None = None) -> None:
        super().__init__()
        self.flow = Path(flow)
        self.pairs = None if pairs is None else check_count("pairs", pairs)
        for name in ("x0", "x1"):
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("done", torch.tensor(0))

    @property
    def own(self) -> tuple[Tensor, Tensor, Tensor] | None:
        return (self.x0, self.x1, self.rows) if len(self.x0) and int(self.done) == len(self.x0) else None

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        """Row k with row k of its own pairs: they were made for each other.

        Raises:
            CombinationError: before `prepare` has made them.
        """
        check_batches(x0, x1, cond0, cond1, generator)
        if self.own is None:
            raise CombinationError(f"the pairs from {self.flow} are not made yet; go through prepare")
        rows = torch.arange(len(x1), device=x1.device)
        return rows, rows

    def prepare(self, source: Source, x1: Tensor, cond: Any = None, *, seed: int = 0) -> Iterator[float]:
        """Make the pairs; what is there already, from a run that was cut off, is not made again."""
        check_instance("source", source, Source)
        check_batch(x1, "x1")
        check_count("seed", seed, least=0)
        return self._make(source, x1, cond, seed)

    def _make(self, source: Source, x1: Tensor, cond: Any, seed: int) -> Iterator[float]:
        if cond is not None and not isinstance(cond, Tensor):
            raise ArgumentError(f"the conditions are a {type(cond).__name__}, expected a tensor of one for each sample")
        flow = self._flow(source, x1)
        n = self.pairs or len(x1)
        if len(self.x0) != n:
            self.x0, self.x1 = (torch.zeros((n, *x1.shape[1:]), dtype=x1.dtype, device=x1.device) for _ in range(2))
            self.rows = torch.arange(n, device=x1.device) % len(x1)
            self.done = torch.zeros_like(self.done)
        while int(self.done) < n:
            begin = int(self.done)
            some = slice(begin, begin + BATCH)
            given = None if cond is None else cond[self.rows[some]]
            generator = stream(seed, "reflow", begin, device=x1.device)
            shape = self.x0[some].shape
            x0 = source.sample(shape, cond=given, generator=generator, dtype=x1.dtype, device=x1.device)
            self.x0[some], self.x1[some] = x0, flow.transport(x0, 0.0, 1.0, given, generator=generator)
            self.done += len(x0)
            yield int(self.done) / n

    def _flow(self, source: Source, x1: Tensor) -> Flow:
        flow = Flow.load(self.flow / "flow.safetensors" if self.flow.is_dir() else self.flow).to(x1.device)
        if flow.event_shape != x1.shape[1:]:
            raise CombinationError(
                f"the flow in {self.flow} has events of shape {tuple(flow.event_shape)}, the data {tuple(x1.shape[1:])}"
            )
        theirs, ours = (describe(part, {}, "source") for part in (flow.start, source))
        if theirs != ours:
            raise CombinationError(
                f"the flow in {self.flow} begins with {theirs}, this run with {ours}; take its source"
            )
        return flow

    def _load_from_state_dict(self, state_dict, prefix, *others) -> None:
        resize(self, ("x0", "x1", "rows"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)
