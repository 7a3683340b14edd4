"""On how many processes a run trains: the seam between the trainer's loop and what carries it.

An engine says which process this is, gives the network its place, and adds up what the processes worked out. The
trainer knows nothing else of it, so another library's stack can be a plugin in the group `fmkit.engines`. `Single` is
one process alone; torch's own processes are in `fmkit.training.distributed`.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from fmkit.parts import Part
from fmkit.training.settings import Settings


class Engine(Part):
    """The base class of every engine, entered (`with engine:`) for as long as a run trains.

    Attributes:
        rank: of this process, 0 .. ranks - 1.
        ranks: processes in all.
    """

    group: ClassVar[str] = "fmkit.engines"
    rank: int = 0
    ranks: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(error)

    @abc.abstractmethod
    def begin(self) -> None:
        """Meet the other processes; nothing where they have met. Runs may lie one inside another, or follow."""

    @abc.abstractmethod
    def end(self, error: BaseException | None = None) -> None:
        """Leave them, perhaps because of an error, which may be told here in better words."""

    @abc.abstractmethod
    def device(self, asked: str | None) -> str:
        """Where this process computes; `asked` is the setting `device`."""

    @abc.abstractmethod
    def check(self, settings: Settings) -> None:
        """Refuse settings that this engine cannot train with.

        Raises:
            CombinationError: with the reason.
        """

    @abc.abstractmethod
    def spread(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network to train: with the weights of rank 0, here whole or in part.

        A network that is kept in parts is a copy; the one handed over stays whole.
        """

    @abc.abstractmethod
    def local(self, tensor: Tensor) -> Tensor:
        """This process's part of a spread network's tensor, in the same memory."""

    @abc.abstractmethod
    def gather(self, tensor: Tensor, like: Tensor) -> Tensor:
        """The whole of which `tensor` is this process's part, as `like`, a spread network's, is laid out.

        Every process calls this, for the same tensors in the same order.
        """

    @abc.abstractmethod
    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        """The inverse of `gather`, by this process alone."""

    @abc.abstractmethod
    def add_gradients(self, parameters: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        """Make the gradient of each part that of the sum of all processes' losses, however gradients came about.

        Args:
            parameters: of the spread network, with gradients as `backward` left them.
            parts: `local` of each, which the optimizer moves.
        """

    @abc.abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, equal on each to the last bit."""

    def count(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """The sum over all processes of what Python knows, whole numbers; `device` is the run's.

        An engine that can ask the others without the device is to: every step asks, and would wait for it.
        """
        return self.sum(torch.tensor(numbers, device=device)).tolist()

    @abc.abstractmethod
    def add_parts(self, values: Tensor) -> Tensor:
        """The sum of figures of this process's parts of the weights: itself, where each holds the whole."""

    @abc.abstractmethod
    def tell(self, text: str) -> str:
        """What rank 0 says."""

    @abc.abstractmethod
    def copy(self, tensors: list[Tensor]) -> None:
        """Overwrite these with rank 0's."""


class Whole(Engine):
    """The base class of engines whose processes each hold all of the weights: any settings suit them."""

    def check(self, settings: Settings) -> None:
        pass

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        return whole

    def add_parts(self, values: Tensor) -> Tensor:
        return values


class Single(Whole):
    """One process, by itself."""

    def begin(self) -> None:
        pass

    def end(self, error: BaseException | None = None) -> None:
        pass

    def device(self, asked: str | None) -> str:
        return asked or ("cuda" if torch.cuda.is_available() else "cpu")

    def spread(self, network: torch.nn.Module) -> torch.nn.Module:
        return network

    def add_gradients(self, parameters: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        pass

    def sum(self, values: Tensor) -> Tensor:
        return values

    def tell(self, text: str) -> str:
        return text

    def copy(self, tensors: list[Tensor]) -> None:
        pass


def engine_of_environment() -> Engine:
    """`DDP` where torchrun or SLURM started several processes, or the caller opened a process group; else `Single`."""
    from fmkit.training.distributed import DDP, found

    return DDP() if torch.distributed.is_initialized() or found(os.environ) is not None else Single()
