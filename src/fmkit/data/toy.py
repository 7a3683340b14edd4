"""Toy densities, drawn fresh, vectorised, seeded by a generator alone: the base class, and what all of them use.

Samples are float32; log-densities are computed in float64 and returned in the dtype of x.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_instance
from fmkit.data.base import Data, DataSet, Split, Stratum
from fmkit.errors import ArgumentError, CombinationError
from fmkit.oracle import Law
from fmkit.randomness import stream
from fmkit.shapes import check_data, check_finite, numbers


class Toy(DataSet):
    """The base class of toy densities. A subclass implements `draw`, and `log_prob` if it has a closed form.

    Args:
        n_train: training samples, >= 1.
        n_test: held-out samples, >= 1.
        labels: the component a sample came from as its condition.

    Attributes:
        components: the number of components; 1 where there are none to tell apart.
    """

    components: int = 1

    def __init__(self, n_train: int = 10_000, n_test: int = 2_000, labels: bool = False) -> None:
        super().__init__()
        self.n_train, self.n_test = check_count("n_train", n_train), check_count("n_test", n_test)
        self.labels = labels

    @abc.abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n samples `(n, d)` and their components `(n,)` (int64, or None), from `generator` alone and on its device.

        Raises:
            ArgumentError: for n below 1, or no generator; `check_draw` looks at that.
        """

    def log_prob(self, x: Tensor) -> Tensor:
        """`(B,)` log-densities, in nats, of `(B, d)` points.

        Raises:
            CombinationError: if this density has no closed form.
            ArgumentError: for points of another shape.
        """
        raise CombinationError(f"{type(self).__name__} has no log-density in closed form")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`(n, d)` samples, from `generator` alone.

        Raises:
            ArgumentError: if n is below 1.
        """
        check_draw(n, generator)
        return self.draw(n, generator)[0]

    @property
    def shares(self) -> list[float]:
        """The probability of each component; equal ones by default."""
        return [1 / self.components] * self.components

    def law(self, component: int | None = None) -> Law | None:
        """The law of the samples, or of those of one component, where one is known whose oracle is; else None.

        Raises:
            ArgumentError: for a component that there is not.
        """
        chosen(component, self.components)
        return None

    def load(self, seed: int = 0) -> Split:
        check_count("seed", seed, least=0)
        train, train_label = self.draw(self.n_train, stream(seed, "toy-train"))
        test, test_label = self.draw(self.n_test, stream(seed, "toy-test"))
        if not self.labels:
            return Split(Data(train, density=self._strata([None], [1.0])), test)
        density = self._strata(range(self.components), self.shares)
        return Split(Data(train, train_label, density=density), test, test_label, self.components)

    def _strata(self, components: Sequence[int | None], shares: Sequence[float]) -> list[Stratum] | None:
        laws = [self.law(k) for k in components]
        known = [law for law in laws if law is not None]
        if len(known) < len(laws):
            return None
        return [Stratum(*stratum) for stratum in zip(shares, known, components, strict=True)]


def check_draw(n: int, generator: torch.Generator) -> None:
    """Refuse a number of samples that is none, and what is no generator."""
    check_count("n", n)
    check_instance("generator", generator, torch.Generator)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)


def chosen(component: int | None, n: int) -> slice:
    """Where one of n components is, or all of them if it is None."""
    if component is None:
        return slice(None)
    if check_count("component", component, least=0) >= n:
        raise ArgumentError(f"component is {component}, expected one below {n}")
    return slice(component, component + 1)


def points(x: Tensor, dim: int) -> Tensor:
    if check_data(x).ndim != 2 or x.shape[1] != dim:
        raise ArgumentError(f"x has shape {tuple(x.shape)}, expected (B, {dim})")
    return check_finite(x, "x").double()


def positive(name: str, value: Tensor | Sequence | float, shape: tuple[int, ...] | None = None) -> Tensor:
    tensor = numbers(name, value)
    if tensor.numel() and not tensor.min() > 0:
        raise ArgumentError(f"{name} has {tensor.min().item():g}, expected positive numbers")
    if shape is not None and tensor.ndim and tensor.shape != shape:
        raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}: one for each component")
    return tensor if shape is None else tensor.expand(shape)


def at_least_zero(name: str, value: float) -> float:
    if not float(numbers(name, value)) >= 0:
        raise ArgumentError(f"{name} is {value}, expected 0 or more")
    return float(value)
