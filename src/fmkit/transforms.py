"""Transforms between the user's units and the model's, which own their log-determinant.

y = forward(x),   log p(x) = log p(y) + log_det(x),   log_det(x) = log |dy/dx|
"""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from fmkit.arguments import check_number
from fmkit.errors import ArgumentError
from fmkit.parts import Part
from fmkit.shapes import check_batch, check_data, check_finite, time_dtype


class Transform(Part):
    """The base class of every transform: an invertible map of events, fixed before training."""

    group: ClassVar[str] = "fmkit.transforms"

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Model units from the user's, `(B, *event)`."""

    @abc.abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The user's units from the model's, `(B, *event)`."""

    @abc.abstractmethod
    def log_det(self, x: Tensor) -> Tensor:
        """`(B,)` log |dy/dx| at x, in nats."""


class Affine(Transform):
    """y = (x - shift) / scale, elementwise.

    Args:
        shift: a number, or a tensor that broadcasts to an event.
        scale: likewise, positive.

    Raises:
        ArgumentError: if the scale is not positive, or either is not finite.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> None:
        super().__init__()
        for name, value in {"shift": shift, "scale": scale}.items():
            tensor = torch.as_tensor(value, dtype=torch.float64)
            check_finite(tensor.reshape(-1), name)
            self.register_buffer(name, tensor.clone(), persistent=False)
        if not bool((self.scale > 0).all()):
            raise ArgumentError(f"scale has a minimum of {self.scale.min().item():g}, expected positive numbers")

    @staticmethod
    def standardise(x: Tensor, floor: float = 1e-2) -> Affine:
        """Mean 0 and standard deviation 1 for every coordinate of `(N, *event)` data.

        Coordinates that hardly vary are divided by `floor` times the largest standard deviation instead.

        Raises:
            ArgumentError: for data that is empty or not finite, or a floor outside [0, 1].
        """
        if check_finite(check_data(x, "x"), "x").ndim < 2:
            raise ArgumentError(f"x has shape {tuple(x.shape)}, expected (N, *event)")
        if not 0 <= check_number("floor", floor) <= 1:
            raise ArgumentError(f"floor is {floor}, expected a share in [0, 1]")
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        largest = std.max().item() or 1.0
        return Affine(mean, std.clamp_min(floor * largest))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return ((x.to(self.scale.dtype) - self.shift) / self.scale).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        self._check(y, "y")
        return (y.to(self.scale.dtype) * self.scale + self.shift).to(y.dtype)

    def log_det(self, x: Tensor) -> Tensor:
        self._check(x)
        per_event = -torch.log(self.scale).expand(x.shape[1:]).sum()
        return per_event.to(x.dtype).expand(x.shape[0])

    def _check(self, x: Tensor, name: str = "x") -> None:
        """Refuse points that are none, or whose events are not those of shift and scale."""
        event = check_batch(x, name).shape[1:]
        for own in (self.shift.shape, self.scale.shape):
            if len(own) > len(event) or any(a not in (1, b) for a, b in zip(own[::-1], event[::-1], strict=False)):
                raise ArgumentError(f"{name} has events of shape {tuple(event)}, this transform's are {tuple(own)}")

    def _apply(self, fn, recurse: bool = True):
        # Moves with the device and stays float64 whatever the model's precision: one rounding, at the end.
        kept = self.shift, self.scale
        super()._apply(fn, recurse)
        device = self.scale.device
        self.shift, self.scale = (v.to(device, time_dtype(device)) for v in kept)
        return self
