"""The batch of a step: a function of (seed, step) alone, wherever the data lives.

The sampler is a counter: step k takes positions k B .. (k + 1) B of an endless sequence of shuffled epochs, so every
sample is seen once an epoch, every batch is full, and a resumed run goes on with the very next sample.

Each form of data says for how many steps it can be drawn from at once; small steps are too short to do so one by one.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from fmkit.arguments import shown
from fmkit.data.base import Data, as_tensor
from fmkit.errors import ArgumentError, CombinationError
from fmkit.randomness import stream, stream_seed
from fmkit.shapes import check_data

# Drawn at once: this many steps, or fewer, for at most this many numbers, which a processor keeps at hand.
STEPS, NUMBERS = 32, 2**15


class Samples(NamedTuple):
    """A raw batch: data, its conditions, and its source samples where the data came in pairs."""

    x1: Tensor
    cond: Any = None
    x0: Tensor | None = None


class Sampler:
    """Indices of step k over n samples, by counting.

    Args:
        n: samples in the data.
        batch_size: of a step.
        seed: of the run.
        part: (r, R): of each batch only the rows r B/R .. (r + 1) B/R, one process's of several.
        device: where the indices are wanted. An epoch's are moved there at once: on a GPU, moving those of each step
            would make each step wait for the one before.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        part: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
    ) -> None:
        self.n, self.batch_size, self.seed, self.part, self.device = n, batch_size, seed, part, device
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int, steps: int = 1) -> Tensor:
        """`(steps batch_size,)` indices of that many steps, across the border of two epochs where they lie on it."""
        position, left, pieces = step * self.batch_size, steps * self.batch_size, []
        while left:
            epoch, offset = divmod(position, self.n)
            piece = self._permutation(epoch)[offset : offset + left]
            pieces.append(piece)
            position, left = position + len(piece), left - len(piece)
        whole, (rank, ranks) = pieces[0] if len(pieces) == 1 else torch.cat(pieces), self.part
        return whole if ranks == 1 else whole.view(steps, ranks, -1)[:, rank].reshape(-1)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(self.n, generator=stream(self.seed, "order", epoch))
            if torch.device(self.device).type == "cuda":  # which fetches it in its own time from pinned memory only
                order = order.pin_memory()
            self._order = order.to(self.device, non_blocking=True)
            self._epoch = epoch
        return self._order

    def __iter__(self) -> Iterator[list[int]]:
        return (self.indices(step).tolist() for step in itertools.count())


class InMemory:
    """Batches of tensors that lie on the training device."""

    def __init__(
        self, data: Data, batch_size: int, seed: int, device: torch.device, part: tuple[int, int] = (0, 1)
    ) -> None:
        self.x = as_tensor(data.x, "data").to(device)
        self.cond = _rows(data.cond, "cond", self.x, device)
        self.x0 = _rows(data.x0, "x0", self.x, device)
        if self.x0 is not None:
            self.x0 = as_tensor(self.x0, "x0")
            if self.x0.shape != self.x.shape:
                raise ArgumentError(
                    f"pairs have shapes {tuple(self.x0.shape)} and {tuple(self.x.shape)}; need equal ones"
                )
        self.sampler, self.device = Sampler(len(self.x), batch_size, seed, part, device), device
        self.event_shape = tuple(self.x.shape[1:])
        self.steps_at_once = _at_once(batch_size, self.event_shape)

    def iterate(self, start: int, steps: int = 1) -> Iterator[Samples]:
        """The batches of steps start, start + 1, ..., those of `steps` steps in one."""
        for step in itertools.count(start, steps):
            i = self.sampler.indices(step, steps)
            cond, x0 = (None if rows is None else rows.index_select(0, i) for rows in (self.cond, self.x0))
            yield Samples(self.x.index_select(0, i), cond, x0)


class Items(Dataset[Any]):
    """A map-style Dataset whose items that cannot be read are named, or replaced by the next that can.

    Args:
        dataset: the user's.
        skip: whether to replace them, with a warning for each. Which item stands for which does not depend on the run.

    Raises:
        ArgumentError: with the index, for an item that cannot be read, or that has another shape than the first.
    """

    def __init__(self, dataset: Any, skip: bool) -> None:
        self.dataset, self.skip = dataset, skip
        self._shape: torch.Size | None = None
        self._shape = _shape_of(self[0])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        for j in range(len(self)):
            at = (i + j) % len(self)
            try:
                return self._read(at)
            except ArgumentError as error:
                if not self.skip:
                    raise
                warnings.warn(f"{error}; the next one takes its place", UserWarning, stacklevel=2)
        raise ArgumentError(f"none of the {len(self)} items of the data set can be read")

    def _read(self, i: int) -> Any:
        try:
            item = self.dataset[i]
        except ArgumentError:  # of fmkit's own images, which says what is wrong where
            raise
        except Exception as error:  # whatever a user's data set raises
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ArgumentError(f"item {i} of the data set cannot be read ({said})") from error
        if self._shape is not None and _shape_of(item) not in (None, self._shape):
            raise ArgumentError(
                f"item {i} of the data set has shape {tuple(_shape_of(item))}, item 0 {tuple(self._shape)}"
            )
        return item


def _shape_of(item: Any) -> Any:
    """Of a sample, or of the sample of a pair; None where there is none to speak of."""
    return getattr(item[0] if isinstance(item, list | tuple) and item else item, "shape", None)


class FromDataset:
    """Batches of a map-style Dataset, through a DataLoader with the counting sampler."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        seed: int,
        device: torch.device,
        options: dict,
        part: tuple[int, int] = (0, 1),
        skip: bool = False,
    ) -> None:
        if len(dataset) == 0:
            raise ArgumentError("the data set is empty, expected at least one sample")
        dataset = Items(dataset, skip)
        self.dataset, self.options, self.device = dataset, options, device
        self.batch_size, self.seed, self.part = batch_size, seed, part
        first = _samples(default_collate([dataset[0]]), device)
        self.event_shape = _event_shape(first)
        # conditions that are no tensors cannot be put together
        self.steps_at_once = _at_once(batch_size, self.event_shape) if isinstance(first.cond, Tensor | None) else 1

    def iterate(self, start: int) -> Iterator[Samples]:
        """The batches of steps start, start + 1, ..."""
        sampler = Sampler(len(self.dataset), self.batch_size, self.seed, self.part)
        order = (sampler.indices(step).tolist() for step in itertools.count(start))
        # Workers draw their base seed here; giving it a stream of its own leaves the global one alone.
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "workers", start))
        loader = DataLoader(self.dataset, batch_sampler=order, generator=generator, **self.options)
        return (_samples(batch, self.device) for batch in loader)


class Streaming:
    """Batches of an IterableDataset, or of a DataLoader over one, as they come; begun again when they end.

    A resumed run reads and drops what was consumed before: exact if the stream comes in the same order again.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.steps_at_once = 1  # it may not be read ahead: what follows need not be there yet
        first = next(iter(loader), None)
        if first is None:
            raise ArgumentError("the data stream is empty, expected at least one batch")
        self.event_shape = _event_shape(_samples(first, device))

    def iterate(self, start: int) -> Iterator[Samples]:
        """The batches of steps start, start + 1, ..."""
        endless = itertools.chain.from_iterable(iter(self.loader) for _ in itertools.count())
        return (_samples(batch, self.device) for batch in itertools.islice(endless, start, None))


def batches_of(
    data: Data,
    batch_size: int,
    seed: int,
    device: torch.device,
    part: tuple[int, int] = (0, 1),
    skip: bool = False,
) -> Any:
    """The batches of whatever the user handed over, in its own precision; or process r's rows of R's, part (r, R).

    With `skip`, items of a data set that cannot be read are replaced.

    Raises:
        ArgumentError: if the data is not what it should be.
        CombinationError: for a part of a stream, of which no process can skip the others' rows.
    """
    x = data.x
    if part[1] > 1 and isinstance(getattr(x, "dataset", x), IterableDataset):
        raise CombinationError("a stream is read whole in every process; leave across_ranks at true")
    if isinstance(x, DataLoader):
        _only_samples(data)
        if isinstance(x.dataset, IterableDataset):
            return Streaming(x, device)
        options = {"num_workers": x.num_workers, "collate_fn": x.collate_fn, "pin_memory": x.pin_memory}
        return FromDataset(x.dataset, x.batch_size or batch_size, seed, device, options, part, skip)
    if isinstance(x, IterableDataset):
        _only_samples(data)
        return Streaming(DataLoader(x, batch_size=batch_size), device)
    if isinstance(x, Dataset):
        _only_samples(data)
        options = {"pin_memory": device.type == "cuda"}  # whoever brings a DataLoader has chosen
        return FromDataset(x, batch_size, seed, device, options, part, skip)
    return InMemory(data, batch_size, seed, device, part)


def first_conditions(batches: Any, n: int) -> Any:
    """n conditions: those of the first batch, again and again; None where there are none."""
    cond = next(batches.iterate(0)).cond
    if not isinstance(cond, Tensor):
        return None
    return cond.repeat(-(-n // len(cond)), *[1] * (cond.ndim - 1))[:n]


def _at_once(batch_size: int, event_shape: tuple[int, ...]) -> int:
    return max(1, min(STEPS, NUMBERS // (batch_size * math.prod(event_shape))))


def _only_samples(data: Data) -> None:
    if data.cond is not None or data.x0 is not None:
        raise ArgumentError("a Dataset brings its own conditions, as (sample, condition); cond is for tensors")


def _samples(batch: Any, device: torch.device) -> Samples:
    x, cond = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (batch, None)
    if isinstance(x, list | tuple) and len(x) == 1:
        x = x[0]
    if not isinstance(x, Tensor):
        raise ArgumentError(
            f"the data yields {type(batch).__name__}s, expected tensors, or (sample, condition) pairs of tensors"
        )
    check_data(x, "data")
    return Samples(_moved(x, device), _moved(cond, device) if isinstance(cond, Tensor) else cond)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A loaded tensor on the training device; a GPU fetches it from pinned memory while a step is under way."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def _event_shape(samples: Samples) -> tuple[int, ...]:
    return tuple(samples.x1.shape[1:])


def _rows(values: Any, name: str, x: Tensor, device: torch.device) -> Tensor | None:
    if values is None:
        return None
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"{name} is {shown(values)}, expected numbers: one for each sample") from None
    if values.ndim == 0 or len(values) != len(x):
        got = "one value" if values.ndim == 0 else f"{len(values)} rows"
        raise ArgumentError(f"{name} has {got} for {len(x)} samples; expected one for each")
    return values.to(device)
