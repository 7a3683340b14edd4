"""The toy densities of the field, drawn fresh, vectorised, seeded by a generator alone.

With noise z ~ N(0, I), uniform numbers u and a component k drawn by its weight:

    gaussian-mixture   x = mu_k + L_k z,  L_k L_k^T = Sigma_k
    8gaussians         x = R (cos 2 pi k/8, sin 2 pi k/8) + std z
    rings              x = R_k (cos 2 pi u, sin 2 pi u) + std z
    moons              x = scale (arc_k(pi u) + noise z) + shift
    pinwheel           x = scale R(-angle) f,  f = (1 + radial_std z_1, tangential_std z_2),
                       angle = 2 pi k/arms + rate exp(f_1)
    scurve             x = (sin t, sign(t) (cos t - 1)) + noise z,  t = 3 pi (u - 1/2)
    checkerboard       x uniform on the squares floor(x_1/side) + floor(x_2/side) even

Samples are float32; log-densities are computed in float64 and returned in the dtype of x.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from fmkit.data.base import Data, DataSet, Split
from fmkit.errors import ArgumentError, CombinationError
from fmkit.randomness import stream
from fmkit.shapes import check_data, check_finite


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
        self.n_train, self.n_test = _count("n_train", n_train), _count("n_test", n_test)
        self.labels = labels

    @abc.abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n samples `(n, d)` and their components `(n,)` (int64, or None), from `generator` alone and on its device."""

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
        return self.draw(_count("n", n), generator)[0]

    def load(self, seed: int = 0) -> Split:
        train, train_label = self.draw(self.n_train, stream(seed, "toy-train"))
        test, test_label = self.draw(self.n_test, stream(seed, "toy-test"))
        if not self.labels:
            return Split(Data(train), test)
        return Split(Data(train, train_label), test, test_label, self.components)


class GaussianMixture(Toy):
    """sum_k w_k N(mu_k, Sigma_k), in any number of dimensions.

    Args:
        means: `(K, d)`, a row for each component; by default three at distance 4 from the origin of the plane.
        weights: `(K,)` positive numbers, scaled to sum 1; equal by default.
        std: one standard deviation, or `(K,)` of them: Sigma_k = std_k² I; 1 by default.
        covariances: `(K, d, d)` symmetric positive definite, instead of std.
        n_train: training samples.
        n_test: held-out samples.
        labels: the component as the condition.

    Raises:
        ArgumentError: for shapes that do not fit, weights or deviations that are not positive, a covariance that is
            not symmetric positive definite, or both std and covariances.

    Examples:
        >>> GaussianMixture(means=[[0.0]]).log_prob(torch.zeros(1, 1)).item()  # -log sqrt(2 pi)
        -0.9189385175704956
    """

    means: Tensor
    log_weights: Tensor
    factors: Tensor

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]] | None = None,
        weights: Tensor | Sequence[float] | None = None,
        std: Tensor | Sequence[float] | float | None = None,
        covariances: Tensor | Sequence[Sequence[Sequence[float]]] | None = None,
        n_train: int = 10_000,
        n_test: int = 2_000,
        labels: bool = False,
    ) -> None:
        super().__init__(n_train, n_test, labels)
        mu = _circle(3, 4.0) if means is None else _numbers("means", means)
        if mu.ndim != 2 or mu.numel() == 0:
            raise ArgumentError(f"means has shape {tuple(mu.shape)}, expected (K, d): a row for each component")
        self.components, dim = mu.shape
        self.register_buffer("means", mu, persistent=False)
        w = _positive("weights", torch.ones(len(mu)) if weights is None else weights, (len(mu),))
        self.register_buffer("log_weights", torch.log(w / w.sum()), persistent=False)
        if std is not None and covariances is not None:
            raise ArgumentError("std and covariances are both given; a component has one covariance")
        if covariances is None:
            scales = _positive("std", 1.0 if std is None else std, (len(mu),))
            factors = scales[:, None, None] * torch.eye(dim, dtype=torch.float64)
        else:
            factors = _cholesky(_numbers("covariances", covariances), (len(mu), dim, dim))
        self.register_buffer("factors", factors, persistent=False)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        device = generator.device
        k = torch.multinomial(self.log_weights.exp().to(device), n, replacement=True, generator=generator)
        z = _normal((n, self.means.shape[1]), generator)
        x = self.means.to(device)[k] + torch.einsum("nij,nj->ni", self.factors.to(device)[k], z)
        return x.float(), k

    def log_prob(self, x: Tensor) -> Tensor:
        wide = _points(x, self.means.shape[1])
        factors, means = self.factors.to(x.device), self.means.to(x.device)
        offset = (wide[:, None] - means).permute(1, 2, 0)  # (K, d, B)
        z = torch.linalg.solve_triangular(factors, offset, upper=False)
        log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.log_weights.to(x.device) - log_det - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return torch.logsumexp(constant[:, None] - 0.5 * z.square().sum(1), 0).to(x.dtype)


class EightGaussians(GaussianMixture):
    """Eight equal Gaussians on a ring: radius 5 and std 1, as in Tong et al. 2024 (Table 2).

    Args:
        radius: of the ring, > 0.
        std: of each Gaussian, > 0.
        n_train: training samples.
        n_test: held-out samples.
        labels: which Gaussian, counted anticlockwise from the first axis, as the condition.

    Raises:
        ArgumentError: if the radius or std is not positive.
    """

    def __init__(
        self, radius: float = 5.0, std: float = 1.0, n_train: int = 10_000, n_test: int = 2_000, labels: bool = False
    ) -> None:
        means = _circle(8, float(_positive("radius", radius)))
        super().__init__(means, std=std, n_train=n_train, n_test=n_test, labels=labels)


class Rings(Toy):
    """Equally probable concentric circles, blurred by N(0, std² I).

    A blurred circle of radius R has, at distance r from the centre, the density
    exp(-(r² + R²)/(2 std²)) I_0(r R/std²)/(2 pi std²), I_0 a Bessel function.

    Args:
        radii: of the circles, > 0; the field's four by default.
        std: of the blur, > 0.
        n_train: training samples.
        n_test: held-out samples.
        labels: which circle, as listed in radii, as the condition.

    Raises:
        ArgumentError: if a radius or std is not positive.
    """

    radii: Tensor

    def __init__(
        self,
        radii: Sequence[float] = (0.75, 1.5, 2.25, 3.0),
        std: float = 0.08,
        n_train: int = 10_000,
        n_test: int = 2_000,
        labels: bool = False,
    ) -> None:
        super().__init__(n_train, n_test, labels)
        self.register_buffer("radii", _positive("radii", radii), persistent=False)
        if self.radii.ndim != 1 or len(self.radii) == 0:
            raise ArgumentError(f"radii has shape {tuple(self.radii.shape)}, expected a list of radii")
        self.std, self.components = float(_positive("std", std)), len(self.radii)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        k = torch.randint(self.components, (n,), generator=generator, device=generator.device)
        radius = self.radii.to(generator.device)[k]
        angle = 2 * math.pi * _uniform((n,), generator)
        circle = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return (circle + self.std * _normal((n, 2), generator)).float(), k

    def log_prob(self, x: Tensor) -> Tensor:
        r = _points(x, 2).norm(dim=1)[:, None]
        radii, variance = self.radii.to(x.device), self.std**2
        # I_0(a) = exp(a) i0e(a): the exponents add up to -(r - R)²/2 std², which does not overflow.
        terms = -0.5 * (r - radii) ** 2 / variance + torch.special.i0e(r * radii / variance).log()
        constant = math.log(2 * math.pi * variance * self.components)
        return (torch.logsumexp(terms, 1) - constant).to(x.dtype)


class Checkerboard(Toy):
    """Uniform on the dark squares of a board centred at the origin.

    The field has two boards of 4x4 squares. The default is the one of the paper's authors, of side 1/0.45 on
    [-4.44, 4.44]², whose entropy log(8/0.45²) = 3.676 nats is the one published results refer to; `side=2` is the
    board on [-4, 4]² of earlier work, with entropy log 32 = 3.466.

    Args:
        cells: squares along an edge, even.
        side: of a square, > 0.
        n_train: training samples.
        n_test: held-out samples.

    Raises:
        ArgumentError: if cells is not a positive even number, or the side not positive.

    Examples:
        >>> round(Checkerboard().entropy, 3)
        3.676
    """

    def __init__(self, cells: int = 4, side: float = 1 / 0.45, n_train: int = 10_000, n_test: int = 2_000) -> None:
        super().__init__(n_train, n_test)
        if _count("cells", cells) % 2:
            raise ArgumentError(f"cells is {cells}, expected an even number: half of the squares are dark")
        self.cells, self.side = cells, float(_positive("side", side))

    @property
    def entropy(self) -> float:
        """The differential entropy in nats: the logarithm of the dark area."""
        return math.log(self.cells**2 / 2) + 2 * math.log(self.side)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        half = self.cells // 2
        column = torch.randint(-half, half, (n,), generator=generator, device=generator.device)
        row = 2 * torch.randint(half, (n,), generator=generator, device=generator.device) - half
        row = row + (column + half) % 2
        # Off the edges by more than a rounding to float32: on the other side of one lies a light square.
        margin = 1e-7 * self.cells
        inside = _uniform((n, 2), generator).clamp(margin, 1 - margin)
        return (self.side * (torch.stack([column, row], 1) + inside)).float(), None

    def log_prob(self, x: Tensor) -> Tensor:
        square = torch.floor(_points(x, 2) / self.side)
        half = self.cells // 2
        dark = (square.sum(1) % 2 == 0) & (square >= -half).all(1) & (square < half).all(1)
        return torch.full(dark.shape, -self.entropy, dtype=x.dtype, device=x.device).masked_fill_(~dark, -math.inf)


class Moons(Toy):
    """Two interleaved half circles: scikit-learn's `make_moons(noise=noise) * scale + shift`, with angles drawn freely.

    Scale 2 and shift -1 with noise 0.05 are those of Tong et al. 2024 (Table 2).

    Args:
        noise: std of the Gaussian noise before scaling, >= 0.
        scale: factor, > 0.
        shift: added to both coordinates after scaling.
        n_train: training samples.
        n_test: held-out samples.
        labels: which moon (0 the upper, 1 the lower) as the condition.

    Raises:
        ArgumentError: for numbers out of range.
    """

    components = 2

    def __init__(
        self,
        noise: float = 0.05,
        scale: float = 2.0,
        shift: float = -1.0,
        n_train: int = 10_000,
        n_test: int = 2_000,
        labels: bool = False,
    ) -> None:
        super().__init__(n_train, n_test, labels)
        self.noise, self.scale = _at_least_zero("noise", noise), float(_positive("scale", scale))
        self.shift = float(_numbers("shift", shift))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        k = torch.randint(2, (n,), generator=generator, device=generator.device)
        angle = math.pi * _uniform((n,), generator)
        upper = torch.stack([angle.cos(), angle.sin()], 1)
        lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
        x = torch.where(k[:, None] == 0, upper, lower) + self.noise * _normal((n, 2), generator)
        return (self.scale * x + self.shift).float(), k


class Pinwheel(Toy):
    """Gaussians stretched along spokes and sheared into a spiral (Johnson et al. 2016).

    Args:
        arms: of the wheel, >= 1.
        radial_std: along a spoke, of length 1, >= 0.
        tangential_std: across it, >= 0.
        rate: of the shear: a point at f_1 along its spoke is turned by rate exp(f_1).
        scale: factor on everything, > 0.
        n_train: training samples.
        n_test: held-out samples.
        labels: the arm as the condition.

    Raises:
        ArgumentError: for numbers out of range.
    """

    def __init__(
        self,
        arms: int = 5,
        radial_std: float = 0.3,
        tangential_std: float = 0.1,
        rate: float = 0.25,
        scale: float = 2.0,
        n_train: int = 10_000,
        n_test: int = 2_000,
        labels: bool = False,
    ) -> None:
        super().__init__(n_train, n_test, labels)
        self.components = _count("arms", arms)
        self.spread = (_at_least_zero("radial_std", radial_std), _at_least_zero("tangential_std", tangential_std))
        self.rate, self.scale = float(_numbers("rate", rate)), float(_positive("scale", scale))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        k = torch.randint(self.components, (n,), generator=generator, device=generator.device)
        z = _normal((n, 2), generator)
        along, across = 1 + self.spread[0] * z[:, 0], self.spread[1] * z[:, 1]
        angle = 2 * math.pi * k / self.components + self.rate * along.exp()
        cos, sin = angle.cos(), angle.sin()
        x = torch.stack([cos * along + sin * across, cos * across - sin * along], 1)
        return (self.scale * x).float(), k


class SCurve(Toy):
    """An S: scikit-learn's `make_s_curve`, seen from the side (2-D, the default) or whole (3-D).

    Args:
        noise: std of the Gaussian noise, >= 0.
        dim: 2 for the plane of the S, or 3 with a middle coordinate uniform on [0, 2].
        n_train: training samples.
        n_test: held-out samples.

    Raises:
        ArgumentError: for negative noise, or another dim.
    """

    def __init__(self, noise: float = 0.05, dim: Literal[2, 3] = 2, n_train: int = 10_000, n_test: int = 2_000) -> None:
        super().__init__(n_train, n_test)
        if dim not in (2, 3):
            raise ArgumentError(f"dim is {dim!r}, expected 2 (the S in its plane) or 3")
        self.noise, self.dim = _at_least_zero("noise", noise), dim

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        t = 3 * math.pi * (_uniform((n,), generator) - 0.5)
        axes = [t.sin(), 2 * _uniform((n,), generator), t.sign() * (t.cos() - 1)]
        x = torch.stack(axes if self.dim == 3 else axes[::2], 1)
        return (x + self.noise * _normal(x.shape, generator)).float(), None


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)


def _circle(n: int, radius: float) -> Tensor:
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def _points(x: Tensor, dim: int) -> Tensor:
    if check_data(x).ndim != 2 or x.shape[1] != dim:
        raise ArgumentError(f"x has shape {tuple(x.shape)}, expected (B, {dim})")
    return x.double()


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ArgumentError(f"{name} is {value!r}, expected a whole number of at least 1")
    return int(value)


def _numbers(name: str, value: Tensor | Sequence | float) -> Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} is no array of numbers: {error}") from None
    check_finite(tensor.reshape(-1), name)
    return tensor


def _positive(name: str, value: Tensor | Sequence | float, shape: tuple[int, ...] | None = None) -> Tensor:
    tensor = _numbers(name, value)
    if tensor.numel() and not tensor.min() > 0:
        raise ArgumentError(f"{name} has {tensor.min().item():g}, expected positive numbers")
    if shape is not None and tensor.ndim and tensor.shape != shape:
        raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}: one for each component")
    return tensor if shape is None else tensor.expand(shape)


def _at_least_zero(name: str, value: float) -> float:
    if not float(_numbers(name, value)) >= 0:
        raise ArgumentError(f"{name} is {value}, expected 0 or more")
    return float(value)


def _cholesky(covariances: Tensor, shape: tuple[int, ...]) -> Tensor:
    if covariances.shape != shape:
        raise ArgumentError(f"covariances has shape {tuple(covariances.shape)}, expected {shape}, as means has it")
    for k, covariance in enumerate(covariances):
        if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=0):
            raise ArgumentError(f"covariance {k} is not symmetric")
        if torch.linalg.cholesky_ex(covariance).info:
            raise ArgumentError(f"covariance {k} is not positive definite")
    return torch.linalg.cholesky(covariances)
