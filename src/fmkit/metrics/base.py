"""A metric: samples and reference in, one number out, smaller is better.

Between two finite sets a distance is not zero even if their laws agree. `Metric.floor` says what it is between two
halves of the reference: a number is only as good as its distance from that floor.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from fmkit.arguments import check_generator
from fmkit.errors import ArgumentError
from fmkit.parts import Part
from fmkit.shapes import check_data, check_finite, time_dtype


class Metric(Part):
    """The base class of distances between samples. A subclass implements `forward`; call the metric itself."""

    group: ClassVar[str] = "fmkit.metrics"

    @abc.abstractmethod
    def forward(self, samples: Tensor, reference: Tensor, generator: torch.Generator | None = None) -> float:
        """The distance of samples `(N, *event)` from a reference `(M, *event)`, computed in float64.

        Args:
            samples: what a flow drew, N >= 2.
            reference: real data, M >= 2.
            generator: the only randomness of a metric that has any; None draws the same numbers at each call.

        Raises:
            ArgumentError: if events differ in shape, values are not finite, or a set has fewer than two points.
        """

    def floor(self, reference: Tensor, generator: torch.Generator | None = None) -> float:
        """The distance between two random halves of the reference, M // 2 points each, M >= 4.

        It falls with M: compare it with as many samples against as many reference points.

        Args:
            reference: `(M, *event)` real data.
            generator: draws the halves, then what the metric draws; None draws the same halves at each call.

        Raises:
            ArgumentError: as the metric, or if M is below 4.
        """
        if len(check_data(reference, "reference")) < 4:
            raise ArgumentError(f"reference has {len(reference)} points, expected at least 4 to make two halves")
        generator = check_generator(generator) or default_generator()
        order = torch.randperm(len(reference), generator=generator, device=generator.device).to(reference.device)
        half = len(reference) // 2
        return self(reference[order[:half]], reference[order[half : 2 * half]], generator)


def default_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """What stands in for a generator that was not given: always the same, and never the global one."""
    return torch.Generator(device).manual_seed(0)


def as_points(samples: Tensor, reference: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Both sets as `(N, D)` and `(M, D)` in float64, events flattened, on the reference's device.

    Raises:
        ArgumentError: if events differ in shape, values are not finite, or a set has fewer than two points; or for a
            generator that is none.
    """
    check_generator(generator)
    for name, x in {"samples": samples, "reference": reference}.items():
        check_finite(check_data(x, name), name)
        if x.ndim < 2 or len(x) < 2:
            raise ArgumentError(f"{name} has shape {tuple(x.shape)}, expected (N, *event) with at least two points")
    if samples.shape[1:] != reference.shape[1:]:
        raise ArgumentError(
            f"samples have events {tuple(samples.shape[1:])} and the reference {tuple(reference.shape[1:])}; "
            "a distance needs equal ones"
        )
    # On the CPU where the device has no float64.
    device = reference.device if time_dtype(reference.device) == torch.float64 else torch.device("cpu")
    x, y = (points.detach().to(device).flatten(1).double() for points in (samples, reference))
    return x, y


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """`(N, M)` squared Euclidean distances between rows, by |x|² + |y|² - 2 x.y about their common mean.

    The mean is taken off first: without it an offset of the data would cancel away the digits of a distance.
    """
    centre = (x.mean(0) + y.mean(0)) / 2
    x, y = x - centre, y - centre
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_min_(0)
