"""Sources: the t = 0 end. A source draws samples and, where it has a density, gives its logarithm.

log p(x) = sum over the event of the one-dimensional log-densities, for the sources made of independent numbers
"""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmkit.arguments import check_device, check_dtype, check_generator, shown
from fmkit.errors import ArgumentError, CombinationError
from fmkit.parts import Part
from fmkit.shapes import check_data, check_finite, check_shape, readable, sum_event

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Source(Part):
    """The base class of every source. A subclass implements `sample`, and `log_prob` if it has a density."""

    group: ClassVar[str] = "fmkit.sources"

    @abc.abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        *,
        cond: Any = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A tensor of `shape` (B, *event), from `generator` alone.

        Raises:
            ArgumentError: for a shape with anything but whole numbers >= 1 in it, or a dtype that is not floating
                point; `check_draw` makes that check in one line.
        """

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        """`(B,)` log-densities in nats.

        Raises:
            ArgumentError: for points that are not a non-empty floating-point tensor, or NaN.
            CombinationError: if this source has no density.
        """
        raise CombinationError(f"{type(self).__name__} has no density, so a flow from it has no log-likelihood")

    @property
    def standard_normal(self) -> bool:
        """Whether this is N(0, I): what score and noise conversions rest on."""
        return False

    @property
    def of_condition(self) -> bool:
        """Whether x0 belongs to its condition, so that no coupling may give it to another."""
        return False


def check_draw(shape: Sequence[int], generator: Any, dtype: Any, device: Any) -> tuple[int, ...]:
    """The shape of a draw, if it is one, and the rest is what it should be; otherwise an ArgumentError."""
    check_generator(generator)
    check_device(device)
    check_dtype(dtype)
    return check_shape(shape)


class Gaussian(Source):
    """N(mean, std² I).

    Args:
        std: standard deviation of every coordinate, > 0.
        mean: mean of every coordinate.

    Raises:
        ArgumentError: if std is not positive and finite, or the mean is not finite.
    """

    def __init__(self, std: float = 1.0, mean: float = 0.0) -> None:
        super().__init__()
        if not 0 < std < math.inf:
            raise ArgumentError(f"std is {std}, expected a positive standard deviation")
        if not math.isfinite(mean):
            raise ArgumentError(f"mean is {mean}, expected a finite number")
        self.std, self.mean = std, mean

    @property
    def standard_normal(self) -> bool:
        return self.std == 1.0 and self.mean == 0.0

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None) -> Tensor:
        shape = check_draw(shape, generator, dtype, device)
        x = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return x if self.standard_normal else x.mul_(self.std).add_(self.mean)

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        _check_points(x)
        constant = math.log(self.std) + 0.5 * math.log(2 * math.pi)
        return sum_event(-0.5 * ((x - self.mean) / self.std) ** 2 - constant)


class Uniform(Source):
    """Independent uniform numbers on [low, high); the density is 0 (log -inf) outside.

    Raises:
        ArgumentError: if low >= high.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ArgumentError(f"low is {low} and high {high}, expected low < high, both finite")
        self.low, self.high = low, high

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None) -> Tensor:
        shape = check_draw(shape, generator, dtype, device)
        x = torch.rand(shape, generator=generator, dtype=dtype, device=device)
        return x.mul_(self.high - self.low).add_(self.low)

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        _check_points(x)
        inside = (x >= self.low) & (x <= self.high)
        density = torch.full_like(x, -math.log(self.high - self.low))
        return sum_event(density.masked_fill(~inside, -math.inf))


class Empirical(Source):
    """Rows drawn with replacement from a data set: for flows from one data set to another. It has no density.

    Args:
        data: `(N, *event)` samples; saved with the flow.
        labels: `(N,)` integers, one for each; where a sample is asked for by its label, it is drawn among those of it.
        conditioned: each belongs to a condition that is no label. Asked for by one, a sample is drawn among all, and a
            warning says so.

    Raises:
        ArgumentError: if the data is empty, not floating point, or not finite, or the labels are no label for each;
            from `sample`, for a label that no row has.
    """

    data: Tensor

    def __init__(self, data: Tensor, labels: Tensor | None = None, conditioned: bool = False) -> None:
        super().__init__()
        self.conditioned = conditioned
        data = torch.as_tensor(data)
        self.register_buffer("data", check_finite(check_data(data, "data"), "data").clone(), persistent=False)
        self.kinds: list[int] = []
        if labels is not None:
            labels = torch.as_tensor(labels).cpu()
            if labels.shape != data.shape[:1] or labels.dtype not in INTEGERS:
                raise ArgumentError(f"labels is {shown(labels)}, expected {len(data)} integers: one for each sample")
            kinds, which, self._counts = labels.unique(return_inverse=True, return_counts=True)
            self.kinds, self._order = kinds.tolist(), which.argsort(stable=True)

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None) -> Tensor:
        shape = check_draw(shape, generator, dtype, device)
        if shape[1:] != self.data.shape[1:]:
            raise ArgumentError(f"asked for events {shape[1:]}, the data has {tuple(self.data.shape[1:])}")
        place = self.data.device if device is None else device
        drawn_on = self.data.device if generator is None else generator.device
        if self.conditioned and cond is not None:
            warnings.warn(
                "x0 are drawn among all pairs: which of them belong to a condition that is no label is not known; "
                "where that matters bring them, flow.transport(x0, 0, 1, cond)",
                UserWarning,
                stacklevel=2,
            )
        if self.kinds and cond is not None:
            u = torch.rand(shape[0], generator=generator, dtype=torch.float64, device=drawn_on)
            rows = self._of_labels(cond, u)
        else:
            rows = torch.randint(len(self.data), (shape[0],), generator=generator, device=drawn_on)
        return self.data[rows.to(self.data.device)].to(dtype=dtype, device=place)

    def _of_labels(self, cond: Any, u: Tensor) -> Tensor:
        """For each label one of its rows, by a number in [0, 1)."""
        kinds, wanted = torch.tensor(self.kinds), torch.as_tensor(cond).cpu().expand(len(u)).contiguous()
        which = torch.searchsorted(kinds, wanted).clamp_max(len(kinds) - 1)
        if (missing := wanted[kinds[which] != wanted]).numel():
            raise ArgumentError(f"no sample of the source has the label {missing[0].item()}; there are {self.kinds}")
        counts = self._counts[which]
        first = self._counts.cumsum(0)[which] - counts
        return self._order[first + (u.cpu() * counts).long()]


class Conditioned(Source):
    """N(cond, std² I), in the model's units: where an image, or a point, becomes another that belongs to it.

    The pair's other half is the condition: an image that was degraded or is of another kind, in the shape of a sample.
    From one point the ODE goes to one end, and where several ends are right to none of them, but between: the noise
    is what lets it choose (Albergo et al., arXiv 2310.03725). Let the network read the condition as well.

    Args:
        std: of the noise, >= 0. Without any there is no density.

    Raises:
        ArgumentError: if std is negative or not finite; from `sample` and `log_prob`, for a condition that is none, or
            has not the shape of the samples.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        if not 0 <= std < math.inf:
            raise ArgumentError(f"std is {std}, expected a standard deviation >= 0")
        self.std = std

    @property
    def of_condition(self) -> bool:
        return True

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None) -> Tensor:
        shape = check_draw(shape, generator, dtype, device)
        device = device if device is not None or generator is None else generator.device
        x = self._mean(cond, shape).to(dtype=dtype or torch.get_default_dtype(), device=device, copy=True)
        if self.std == 0:
            return x
        return x.add_(torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device), alpha=self.std)

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        _check_points(x)
        if self.std == 0:
            return super().log_prob(x, cond)
        return Gaussian(self.std).log_prob(x - self._mean(cond, tuple(x.shape)).to(x))

    @staticmethod
    def _mean(cond: Any, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(cond, Tensor) or cond.shape != shape or cond.is_complex():
            got = "there is none" if cond is None else f"it is {shown(cond)}"
            raise ArgumentError(
                f"samples begin at their condition, and {got}; expected a point for each, of shape {shape}"
            )
        return check_finite(cond, "the condition")


class Scaled(Source):
    """scale times a sample of another source: where a path starts if sigma(0) is not 1.

    Args:
        source: what is scaled.
        scale: the factor, > 0.
    """

    def __init__(self, source: Source, scale: float) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ArgumentError(f"scale is {scale}, expected a positive number")
        self.source, self.scale = source, scale

    @property
    def of_condition(self) -> bool:
        return self.source.of_condition

    @staticmethod
    def of(source: Source, scale: float) -> Source:
        """The simplest source with that law: a scaled Gaussian is a Gaussian."""
        if isinstance(source, Gaussian):
            return Gaussian(source.std * scale, source.mean * scale)
        return Scaled(source, scale)

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None) -> Tensor:
        return self.scale * self.source.sample(shape, cond=cond, generator=generator, dtype=dtype, device=device)

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        _check_points(x)
        return self.source.log_prob(x / self.scale, cond) - math.log(self.scale) * x[0].numel()


class Convolved(Source):
    """A sample of another source plus N(0, std² I): where a path with latent noise starts.

    It has a density only where the other is Gaussian, about nothing or a condition, and `of` gives such a one then.
    """

    def __init__(self, source: Source, std: float) -> None:
        super().__init__()
        self.source, self.blur = source, Gaussian(std)

    @property
    def of_condition(self) -> bool:
        return self.source.of_condition

    @staticmethod
    def of(source: Source, std: float) -> Source:
        """The simplest source with that law: a blurred Gaussian is a Gaussian."""
        if isinstance(source, Gaussian):
            return Gaussian(math.hypot(source.std, std), source.mean)
        if isinstance(source, Conditioned):
            return Conditioned(math.hypot(source.std, std))
        return Convolved(source, std)

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None) -> Tensor:
        x = self.source.sample(shape, cond=cond, generator=generator, dtype=dtype, device=device)
        return x + self.blur.sample(shape, generator=generator, dtype=x.dtype, device=x.device)


def _check_points(x: Tensor) -> None:
    """A point may be infinitely far away, where the density is 0; it is not NaN."""
    check_data(x)
    if readable(x) and bool(x.isnan().any()):
        raise ArgumentError("x has NaN in it, expected points")
