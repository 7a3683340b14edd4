"""Guidance: fields made of fields. A wrapper offers no more than what it wraps."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.fields.base import Stochastic, VectorField, as_field


class ClassifierFree(VectorField):
    """Classifier-free guidance v(t, x) + scale (v(t, x | c) - v(t, x)) (Ho & Salimans, arXiv 2207.12598).

    The field must have been trained with its condition dropped now and then (`MLP(cond_dropout=...)`).
    Costs two evaluations of the field; scale 1 is the conditional field, 0 the unconditional one.

    Args:
        field: a conditional field that also answers without a condition.
        scale: guidance scale.

    Raises:
        ArgumentError: if the scale is not finite.
    """

    def __init__(self, field: VectorField, scale: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(scale):
            raise ArgumentError(f"scale is {scale}, expected a finite number")
        self.field, self.scale = as_field(field), scale

    @property
    def interval(self) -> tuple[float, float]:
        return self.field.interval

    @property
    def offers(self) -> frozenset[str]:
        return self.field.offers & {"velocity", "stochastic"}

    @property
    def event_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return self.field.event_shape

    @property
    def euclidean(self) -> bool:
        return self.field.euclidean

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        free = self.field.velocity(t, x, None)
        return free if cond is None else free + self.scale * (self.field.velocity(t, x, cond) - free)

    def stochastic(self, t: Tensor, x: Tensor, cond: Any = None) -> Stochastic:
        free = self.field.stochastic(t, x, None)
        if cond is None:
            return free
        bound = self.field.stochastic(t, x, cond)
        velocity = free.velocity + self.scale * (bound.velocity - free.velocity)
        return Stochastic(velocity, free.noise + self.scale * (bound.noise - free.noise), free.std)
