"""A law of the data whose posterior on an affine path is known, and what such a posterior answers."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_generator
from fmkit.paths import Coefficients
from fmkit.shapes import time_dtype
from fmkit.sources import Gaussian

# Numbers held at once, points times components times dimensions: two megabytes stay in a processor's cache.
CHUNK_ELEMENTS = 2**18


class Row(NamedTuple):
    """Weights `(B,)` of the latents (x1, x0, z)."""

    alpha: Tensor
    sigma: Tensor
    gamma: Tensor

    @staticmethod
    def of(at: Coefficients) -> Row:
        """The coefficients, with zeros for a latent noise that is not there."""
        return Row(at.alpha, at.sigma, torch.zeros_like(at.alpha) if at.gamma is None else at.gamma)


class Given(Protocol):
    """What points `(B, D)` of a path say about the latents."""

    def mean(self, row: Row) -> Tensor:
        """E[row of the latents | x], `(B, D)`."""

    def variance_of(self, row: Row) -> Tensor:
        """The trace of Cov[row of the latents | x], `(B,)`."""


class Law(torch.nn.Module, abc.ABC):
    """The base class of laws, in float64 whatever the precision of the module they are in.

    Attributes:
        event_shape: of a sample; D is the number of its elements.
    """

    event_shape: tuple[int, ...]

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where the law's numbers lie."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many numbers are held for each point asked about."""

    @property
    def rows(self) -> int:
        """How many points to ask about at once."""
        return max(1, CHUNK_ELEMENTS // self.size)

    @abc.abstractmethod
    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """`(n, D)` samples."""

    @abc.abstractmethod
    def given(self, source: Gaussian, at: Row, x: Tensor) -> Given:
        """What the points `(B, D)` say, where the path's coefficients are `at` and x0 has the law of `source`."""

    @abc.abstractmethod
    def standardised(self, shift: Tensor, scale: Tensor) -> Law:
        """The law of (x - shift)/scale, elementwise; both broadcast to an event."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`(n, *event)` samples in float64, from `generator` alone, on the law's own device."""
        check_generator(generator)
        return self.draw(check_count("n", n), generator).reshape(-1, *self.event_shape)

    def _apply(self, fn: Any, recurse: bool = True) -> Law:
        # Moves with the device and stays float64, whatever the precision of the flow it is in.
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            assert moved is not None  # it was kept because it is there
            self._buffers[name] = buffer.to(moved.device, time_dtype(moved.device))
        return self
