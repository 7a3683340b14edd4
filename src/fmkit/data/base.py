"""Data as training takes it: samples, conditions, pairs, and what belongs to them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmkit.arguments import check_arguments, check_count, check_instance, check_number, shown
from fmkit.errors import ArgumentError
from fmkit.oracle import Law
from fmkit.parts import Part
from fmkit.shapes import check_batch, check_data, check_finite
from fmkit.transforms import Transform

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Stratum:
    """The part of the data that has one condition.

    Attributes:
        share: of all samples, in (0, 1].
        law: of its samples.
        cond: the condition; None where there is none, or where it was dropped.

    Raises:
        ArgumentError: for another share, or what is no law.
    """

    share: float
    law: Law
    cond: Any = None

    def __post_init__(self) -> None:
        check_instance("law", self.law, Law)
        if not 0 < check_number("share", self.share) <= 1:
            raise ArgumentError(f"share is {self.share}, expected one in (0, 1]")


@dataclass
class Data:
    """Samples with all that goes with them.

    Attributes:
        x: `(N, *event)` samples in the user's units, or a torch Dataset or DataLoader of samples or
            (sample, condition) pairs.
        cond: `(N, ...)` conditions, or None.
        x0: `(N, *event)` source samples paired with x, or None; they are in the model's units.
        transform: from the user's units to the model's, or None.
        augment: fresh randomness for every batch (dequantization, flips), `(x, generator) -> x`, or None.
        density: the law that x was drawn from, in its units, a stratum for each condition; None where it is not known.

    Raises:
        ArgumentError: for a transform, an augmentation or strata that are none; x itself is looked at by the trainer.
    """

    x: Any
    cond: Any = None
    x0: Tensor | None = None
    transform: Transform | None = None
    augment: Augment | None = None
    density: Sequence[Stratum] | None = None

    def __post_init__(self) -> None:
        check_arguments(type(self).__init__, vars(self))

    def augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch with fresh randomness, or as it is where there is none to add.

        Raises:
            ArgumentError: if the augmentation gives back anything but as many finite samples.
        """
        if self.augment is None:
            return x
        y = check_batch(self.augment(x, generator), "what augment returned")
        if len(y) != len(x):
            raise ArgumentError(f"augment returned {shown(y)} for a batch of {len(x)}, expected as many samples")
        return y


@dataclass
class Split:
    """A data set ready for a run: what is trained on, what is held out, and what a report needs.

    Attributes:
        train: the training data.
        test: `(M, *event)` held-out samples in the user's units.
        test_cond: their conditions, or None.
        classes: number of classes, if conditions are labels.
        levels: number of grey levels, if the samples are integer images (then `bits_per_dim` means something).
        degrade: what conditions show of images `(N, C, H, W)`, both in grey levels; None where they are no degraded
            images.

    Raises:
        ArgumentError: for what is no data, no samples, or no number of classes or levels.
    """

    train: Data
    test: Tensor
    test_cond: Any = None
    classes: int | None = None
    levels: int | None = None
    degrade: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_instance("train", self.train, Data)
        check_data(self.test, "test")
        if self.test_cond is not None and len(self.test_cond) != len(self.test):
            raise ArgumentError(f"test_cond has {len(self.test_cond)} rows for {len(self.test)} samples of test")
        for name, value in {"classes": self.classes, "levels": self.levels}.items():
            if value is not None:
                check_count(name, value)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.test.shape[1:])


class DataSet(Part):
    """The base class of registered data sets. A subclass implements `load`."""

    group: ClassVar[str] = "fmkit.datasets"

    @abc.abstractmethod
    def load(self, seed: int = 0) -> Split:
        """The data, split into training and held-out samples by `seed` alone.

        Raises:
            ArgumentError: if a file is missing or does not hold what is needed.
        """


def as_tensor(x: Any, name: str) -> Tensor:
    """Finite floating-point samples `(N, *event)` from a tensor or an array.

    Raises:
        ArgumentError: for integers (say what they mean first), an empty or one-dimensional array, or NaN.
    """
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiubc":
            raise ArgumentError(f"{name} is an array of {x.dtype}, expected floating point")
        x = torch.from_numpy(x) if x.flags.writeable else torch.from_numpy(x.copy())
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{name} is a {type(x).__name__}, expected a tensor, an array, a Dataset or a DataLoader")
    if not x.is_floating_point():
        raise ArgumentError(
            f"{name} has dtype {x.dtype}, expected floating point; convert it, and dequantize integers that are images"
        )
    if x.ndim < 2 or x.numel() == 0:
        hint = f"; use {name}[:, None] for scalar events" if x.ndim == 1 and x.numel() else ""
        raise ArgumentError(f"{name} has shape {tuple(x.shape)}, expected a non-empty (N, *event){hint}")
    return check_finite(check_data(x, name), name)
