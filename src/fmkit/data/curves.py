"""Curves in the plane, blurred by Gaussian noise z ~ N(0, I); u is uniform and k a component drawn by its weight.

rings   x = R_k (cos 2 pi u, sin 2 pi u) + std z
moons   x = scale (arc_k(pi u) + noise z) + shift
scurve  x = (sin t, sign(t) (cos t - 1)) + noise z,  t = 3 pi (u - 1/2)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fmkit.data.toy import Toy, at_least_zero, check_draw, chosen, normal, points, positive, uniform
from fmkit.errors import ArgumentError
from fmkit.oracle import Mixture
from fmkit.quadrature import gauss
from fmkit.shapes import numbers

# Of a curve's length: a narrower blur has no law here.
NARROWEST = 1e-3


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
        self.register_buffer("radii", positive("radii", radii), persistent=False)
        if self.radii.ndim != 1 or len(self.radii) == 0:
            raise ArgumentError(f"radii has shape {tuple(self.radii.shape)}, expected a list of radii")
        self.std, self.components = float(positive("std", std)), len(self.radii)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        check_draw(n, generator)
        k = torch.randint(self.components, (n,), generator=generator, device=generator.device)
        radius = self.radii.to(generator.device)[k]
        circle = radius[:, None] * _circle(2 * math.pi * uniform((n,), generator))
        return (circle + self.std * normal((n, 2), generator)).float(), k

    def log_prob(self, x: Tensor) -> Tensor:
        r = points(x, 2).norm(dim=1)[:, None]
        radii, variance = self.radii.to(x.device), self.std**2
        # I_0(a) = exp(a) i0e(a): the exponents add up to -(r - R)²/2 std², which does not overflow.
        terms = -0.5 * (r - radii) ** 2 / variance + torch.special.i0e(r * radii / variance).log()
        constant = math.log(2 * math.pi * variance * self.components)
        return (torch.logsumexp(terms, 1) - constant).to(x.dtype)

    def law(self, component: int | None = None) -> Mixture | None:
        circles = []
        for radius in self.radii[chosen(component, self.components)].tolist():
            angle, weights = _around(2 * math.pi * radius / self.std)
            circles.append((radius * _circle(2 * math.pi * angle), weights))
        return _blurred(circles, self.std)


class Moons(Toy):
    """Two interleaved half circles: scikit-learn's `make_moons(noise=noise) * scale + shift`, each sample drawn freely.

    Scale 2 and shift -1 with noise 0.05 are those of Tong et al. 2024 (Table 2).

    Args:
        noise: std of the Gaussian noise before scaling, >= 0.
        scale: factor, > 0.
        shift: added to both coordinates after scaling.
        n_train: training samples.
        n_test: held-out samples.
        labels: which moon (0 the upper, 1 the lower) as the condition.
        even: every set has as many samples of each moon, at equal angles, as scikit-learn's have: two sets then differ
            by the noise alone. Samples of a set are not independent of each other; one by one their law is the same.

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
        even: bool = False,
    ) -> None:
        super().__init__(n_train, n_test, labels)
        self.even = even
        self.noise, self.scale = at_least_zero("noise", noise), float(positive("scale", scale))
        self.shift = float(numbers("shift", shift))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        check_draw(n, generator)
        if self.even:
            order = torch.randperm(n, generator=generator, device=generator.device)
            k, place = order % 2, order // 2
            angle = place.double() / ((n + 1 - k) // 2 - 1).clamp_min(1)  # from 0 to 1 on either moon
        else:
            k = torch.randint(2, (n,), generator=generator, device=generator.device)
            angle = uniform((n,), generator)
        arc = _arc(k[:, None], math.pi * angle)
        return (self.scale * (arc + self.noise * normal((n, 2), generator)) + self.shift).float(), k

    def law(self, component: int | None = None) -> Mixture | None:
        angle, weights = _along(math.pi / max(self.noise, NARROWEST))
        arcs = [_arc(torch.tensor(k), math.pi * angle) for k in [0, 1][chosen(component, 2)]]
        return _blurred([(self.scale * arc + self.shift, weights) for arc in arcs], self.scale * self.noise)


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
        self.noise, self.dim = at_least_zero("noise", noise), dim

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        check_draw(n, generator)
        t = 3 * math.pi * (uniform((n,), generator) - 0.5)
        x, middle = _s(t), 2 * uniform((n,), generator)
        if self.dim == 3:
            x = torch.stack([x[:, 0], middle, x[:, 1]], 1)
        return (x + self.noise * normal(x.shape, generator)).float(), None

    def law(self, component: int | None = None) -> Mixture | None:
        chosen(component, self.components)
        if self.dim == 3:
            return None
        u, weights = _along(1.5 * math.pi / max(self.noise, NARROWEST))
        halves = [(_s(sign * 1.5 * math.pi * u), weights) for sign in (-1, 1)]  # the S is smooth on either side of 0
        return _blurred(halves, self.noise)


def _circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1)


def _arc(k: Tensor, angle: Tensor) -> Tensor:
    """The upper half circle (k = 0), or the lower."""
    upper = _circle(angle)
    return torch.where(k == 0, upper, torch.tensor([1.0, 0.5], dtype=angle.dtype, device=angle.device) - upper)


def _s(t: Tensor) -> Tensor:
    return torch.stack([t.sin(), t.sign() * (t.cos() - 1)], 1)


# A blurred curve is a mixture of Gaussians along it, and a quadrature makes it one of finitely many. With nodes one std
# of the blur apart the error is a few 1e-9 of the density; Gauss's are pi/2 times as wide in an open curve's middle.


def _around(length: float) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights of a closed curve, whose length is in units of the blur: the trapezoidal rule."""
    n = math.ceil(1.25 * min(length, 1 / NARROWEST)) + 16
    return torch.arange(n, dtype=torch.float64) / n, torch.full((n,), 1 / n, dtype=torch.float64)


def _along(length: float) -> tuple[Tensor, Tensor]:
    """The same of an open curve, parametrised smoothly: Gauss's rule."""
    return gauss(math.ceil(2.5 * min(length, 1 / NARROWEST)) + 16)


def _blurred(pieces: Sequence[tuple[Tensor, Tensor]], std: float) -> Mixture | None:
    """Equally probable curves `(n, 2)` with their nodes' weights, blurred; None if the blur is too narrow for nodes."""
    length = max((piece.diff(dim=0).norm(dim=1).sum().item() for piece, _ in pieces), default=0.0)
    if std < NARROWEST * length:
        return None
    return Mixture(torch.cat([piece for piece, _ in pieces]), torch.cat([w for _, w in pieces]), std=std)
