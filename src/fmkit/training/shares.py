"""A step's batch in shares: over processes, and over several passes through the network one after the other.

    loss = 1/B sum_i l_i,   gradient = sum over shares of that of 1/B sum_{i in share} l_i

Times and points are drawn for the whole batch in every process, which costs next to nothing, and the network answers
only for the rows of a share. So the draws of a step do not depend on how many shares there are, and neither does the
sum, but for rounding. Dropout alone is drawn inside the network, and has a stream for each share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.errors import ArgumentError, TrainingError
from fmkit.fields import VectorField
from fmkit.objectives import Question
from fmkit.training.engine import Engine


class Share(NamedTuple):
    """Rows begin .. end - 1 of the `drawn` ones, the `number`-th share; `of` is the size of the whole batch."""

    number: int
    begin: int
    end: int
    drawn: int
    of: int

    def network(self, network: torch.nn.Module) -> torch.nn.Module:
        """A network that answers for these rows only."""
        return network if self.end - self.begin == self.drawn else Rows(network, self)

    def question(self, question: Question) -> Question:
        """What is asked about these rows."""
        return Question(*(_cut(part, self.drawn, self.begin, self.end) for part in question))

    @property
    def weight(self) -> float:
        """Of these rows' mean in the whole batch's."""
        return (self.end - self.begin) / self.of

    def mean(self, value: Tensor) -> Tensor:
        """This share's part of the mean of a loss `(drawn,)` over the whole batch."""
        if self.end - self.begin == self.of:
            return value.mean()
        return value[self.begin : self.end].sum() / self.of


def shares(drawn: int, engine: Engine, passes: int, across: bool) -> Iterator[Share]:
    """The shares of this process, one for each pass.

    Args:
        drawn: rows of the batch as this process has it.
        engine: says which process this is, of how many.
        passes: through the network, in every process.
        across: whether that is the whole batch; else it is this process's own rows.

    Raises:
        TrainingError: if there are fewer rows than shares.
    """
    first, several = (engine.rank * passes, engine.ranks * passes) if across else (0, passes)
    if drawn < several:
        raise TrainingError(f"a batch came with {drawn} pairs, too few for {several} shares of it")
    of = drawn if across else drawn * engine.ranks
    for k in range(passes):
        begin, end = ((first + k + i) * drawn // several for i in (0, 1))
        yield Share(engine.rank * passes + k, begin, end, drawn, of)


def check_shares(batch_size: int, ranks: int, passes: int) -> None:
    """Refuse a batch that cannot be divided evenly.

    Raises:
        ArgumentError: naming a size that can.
    """
    several = ranks * passes
    if batch_size % several:
        near = max(1, round(batch_size / several)) * several
        raise ArgumentError(
            f"batch_size is {batch_size} for {ranks} processes of {passes} passes each, expected a multiple of "
            f"{several}, as {near}: it counts the samples of a step in all of them"
        )


class Rows(torch.nn.Module):
    """A network that is asked about a whole batch and answers for some rows of it; the other rows are NaN.

    An objective whose loss of one row depends on the answer for another would be wrong here, and is NaN. What is not
    asked about the batch (of several times its size, or one sample under `torch.vmap`) is answered in full.

    Args:
        network: the network.
        share: which rows.
    """

    def __init__(self, network: torch.nn.Module, share: Share) -> None:
        super().__init__()
        self.inner, self.share = network, share

    def forward(self, *arguments: Any) -> Tensor:
        """The answer, of the length of the batch."""
        while arguments and arguments[-1] is None:
            arguments = arguments[:-1]
        answer = self.inner.velocity if isinstance(self.inner, VectorField) else self.inner
        drawn, begin, end = self.share.drawn, self.share.begin, self.share.end
        if not all(isinstance(a, Tensor) and a.ndim and len(a) == drawn for a in arguments[:2]):
            return answer(*arguments)
        out = answer(*(_cut(a, drawn, begin, end) for a in arguments))
        before, after = (out.new_full((rows, *out.shape[1:]), torch.nan) for rows in (begin, drawn - end))
        return torch.cat([before, out, after])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def _cut(value: Any, drawn: int, begin: int, end: int) -> Any:
    return value[begin:end] if isinstance(value, Tensor) and value.ndim and len(value) == drawn else value
