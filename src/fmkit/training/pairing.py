"""Pairs for the steps: each x1 in the model's units, with the x0 that the coupling gives it.

A coupling is shown a block: the samples of `coupling_batches` steps at once, or all of the data if it was fitted to it,
and then the fresh x0 of several steps. Where nothing is paired a block is only drawn at once, which small steps are too
short to do one by one. Every draw of a block follows from (seed, purpose, block), so blocks may be paired ahead of
their steps, by any number of threads: the pairs are the same.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fmkit.couplings import Coupling
from fmkit.data.base import Data
from fmkit.errors import ArgumentError, CombinationError
from fmkit.objectives import Batch
from fmkit.randomness import stream
from fmkit.sources import Source
from fmkit.training.batches import InMemory, Samples
from fmkit.training.settings import Settings

Item = TypeVar("Item")
Made = TypeVar("Made")


class Block(NamedTuple):
    """The raw samples of some steps, in one."""

    number: int
    samples: Samples
    steps: int


class Pairing:
    """Turns raw batches into pairs.

    Args:
        data: what the batches come from: its augmentation and transform.
        source: the law of x0.
        coupling: which x0 meets which x1; prepared, if it is fitted first.
        settings: the run's numbers.
        dtype: of the pairs.
        purpose: told apart in the random streams: nothing in training, "validation-" for held-out data.
        rank: of the process whose own rows the batches hold; told apart in the random streams too.
    """

    def __init__(
        self,
        data: Data,
        source: Source,
        coupling: Coupling,
        settings: Settings,
        dtype: torch.dtype,
        purpose: str = "",
        rank: int = 0,
    ) -> None:
        self.data, self.source, self.coupling = data, source, coupling
        self.settings, self.dtype, self.purpose, self.rank = settings, dtype, purpose, rank
        self._all: Tensor | None = None

    def prepare(self, batches: Any) -> Iterator[float]:
        """Fit the coupling to the data in the model's units, as `Coupling.prepare` does.

        Raises:
            CombinationError: if the coupling wants all of the data, and the data is not in memory.
        """
        if isinstance(batches, InMemory):
            return self.coupling.prepare(self.source, self._units(batches.x), batches.cond, seed=self.settings.seed)
        if self.coupling.whole or type(self.coupling).prepare is not Coupling.prepare:
            raise CombinationError(
                f"{type(self.coupling).__name__} is fitted to all of the data, which must be a tensor or an array then"
            )
        return iter(())

    def pairs(self, batches: Any, start: int, stop: int) -> Iterator[Batch]:
        """The pairs of steps start .. stop - 1."""
        if self.coupling.whole:
            self._all = self._units(batches.x)
        size = self._steps_of_a_block(batches)
        first = start // size * size
        blocks = itertools.islice(self._blocks(batches, first, size), -(-(stop - first) // size))
        workers = self.settings.coupling_workers
        if workers is None:  # on two cores one thread beside the step made it twice as slow, two no faster
            workers = 0 if batches.device.type == "cpu" else 2
        paired = ahead(lambda block: self._pair(block, batches), blocks, 0 if self.coupling.independent else workers)
        return itertools.islice(itertools.chain.from_iterable(paired), start - first, stop - first)

    def unpaired(self, batches: Any) -> Iterator[Batch]:
        """What the coupling is shown at steps 0, 1, ...: a batch at a time, or fresh x0 and all of the data."""
        if not self.coupling.whole:
            return (self._drawn(samples, step) for step, samples in enumerate(batches.iterate(0)))
        x1, n = self._units(batches.x), self.settings.batch_size
        return (Batch(self._fresh(step, n, x1), x1, batches.cond) for step in itertools.count())

    def whence(self, batches: Any, x1: Tensor) -> list[int] | None:
        """Where in the data samples of a batch lie; None where it is not in memory, or a batch holds others."""
        if not isinstance(batches, InMemory) or self.data.augment is not None:
            return None
        every = self._units(batches.x).flatten(1)
        found = [(every == row).all(1).nonzero() for row in x1.flatten(1)]
        return [int(where[0]) for where in found] if all(len(where) for where in found) else None

    @property
    def _kept(self) -> bool:
        """Whether the pairs are those in which x0 and x1 come."""
        return self.coupling.independent or self.data.x0 is not None

    def _steps_of_a_block(self, batches: Any) -> int:
        at_once = self._kept or self.coupling.whole  # which pairs each x0 by itself
        return batches.steps_at_once if at_once else self.settings.coupling_batches

    @staticmethod
    def _blocks(batches: Any, first: int, size: int) -> Iterator[Block]:
        if isinstance(batches, InMemory):
            for number, samples in enumerate(batches.iterate(first, size), first // size):
                yield Block(number, samples, size)
            return
        samples = batches.iterate(first)
        for number in itertools.count(first // size):
            several = list(itertools.islice(samples, size))
            if not several:
                return
            yield Block(number, several[0] if len(several) == 1 else _joined(several), len(several))

    @torch.no_grad()
    def _pair(self, block: Block, batches: Any) -> list[Batch]:
        if self.coupling.whole:
            return _split(self._from_all(block.number, len(block.samples.x1), batches), block.steps)
        return self._coupled(self._drawn(block.samples, block.number), block.number, block.steps)

    def _drawn(self, samples: Samples, number: int) -> Batch:
        """x1 in the model's units and an x0 for each, in the order in which they came."""
        x1, device = samples.x1, samples.x1.device
        if self.data.augment is not None:
            x1 = self.data.augmented(x1, self._stream("augment", number, device))
        x1 = self._units(x1)
        if samples.x0 is not None:
            return Batch(samples.x0.to(self.dtype), x1, samples.cond)
        generator = self._stream("source", number, device)
        x0 = self.source.sample(x1.shape, cond=samples.cond, generator=generator, dtype=x1.dtype, device=device)
        return Batch(x0, x1, samples.cond)

    def _coupled(self, drawn: Batch, number: int, steps: int) -> list[Batch]:
        if self._kept:
            return _split(drawn, steps)
        generator = self._stream("coupling", number)
        i0, i1 = self.coupling.pair(drawn.x0, drawn.x1, None, drawn.cond, generator=generator)
        if len(i1) < steps:
            raise ArgumentError(f"{type(self.coupling).__name__} left {len(i1)} pairs for {steps} steps")
        return _split(Batch(drawn.x0[i0], drawn.x1[i1], None if drawn.cond is None else drawn.cond[i1]), steps)

    def _from_all(self, number: int, n: int, batches: InMemory) -> Batch:
        """n fresh x0, each with its partner among all of the data."""
        assert self._all is not None  # pairs saw to it
        x0 = self._fresh(number, n, self._all)
        generator = self._stream("coupling", number)
        i0, i1 = self.coupling.pair(x0, self._all, None, batches.cond, generator=generator)
        if self.data.augment is None:
            x1 = self._all[i1]
        else:
            generator = self._stream("augment", number, batches.device)
            x1 = self._units(self.data.augmented(batches.x[i1], generator))
        return Batch(x0[i0], x1, None if batches.cond is None else batches.cond[i1])

    def _fresh(self, number: int, n: int, x1: Tensor) -> Tensor:
        generator = self._stream("source", number, x1.device)
        return self.source.sample((n, *x1.shape[1:]), generator=generator, dtype=self.dtype, device=x1.device)

    def _stream(self, purpose: str, number: int, device: torch.device | str = "cpu") -> torch.Generator:
        return stream(self.settings.seed, self.purpose + purpose, number, self.rank, device)

    def _units(self, x: Tensor) -> Tensor:
        if self.data.transform is not None:
            x = self.data.transform(x)
        return x.to(self.dtype)  # only now: a transform may take away digits that the precision could not hold


def ahead(work: Callable[[Item], Made], items: Iterable[Item], workers: int) -> Iterator[Made]:
    """`map(work, items)`, in order, computed in threads up to `workers` items ahead; in this one if there are none.

    The items are drawn in this thread. Closing the iterator, or dropping it, drops what lies ahead.
    """
    if workers == 0:
        yield from map(work, items)
        return
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fmkit-pairing")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _split(batch: Batch, steps: int) -> list[Batch]:
    """The pairs of each step, as even in number as can be."""
    if steps == 1:
        return [batch]
    cond = [None] * steps if batch.cond is None else batch.cond.tensor_split(steps)
    return [Batch(*each) for each in zip(batch.x0.tensor_split(steps), batch.x1.tensor_split(steps), cond, strict=True)]


def _joined(samples: list[Samples]) -> Samples:
    """One batch of several; conditions that are not tensors cannot be joined."""
    conds = [s.cond for s in samples]
    if any(c is not None and not isinstance(c, Tensor) for c in conds):
        raise ArgumentError("conditions that are not tensors cannot be paired in blocks; take coupling_batches = 1")
    cond = None if conds[0] is None else torch.cat(conds)
    return Samples(torch.cat([s.x1 for s in samples]), cond, None)
