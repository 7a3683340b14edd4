"""The field of a network is tangent and periodic whatever the network says."""

from __future__ import annotations

import math

import torch

from fmkit.divergence import ExactDivergence
from fmkit.fields import MLP, ModuleField
from fmkit_riemannian import Sphere, TangentField, Torus


class Wild(torch.nn.Module):
    """An arbitrary network of an embedded point; rows do not meet."""

    def __init__(self, d):
        super().__init__()
        weights = torch.randn(2, d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        self.a, self.b = torch.nn.Parameter(weights[0]), torch.nn.Parameter(weights[1])

    def forward(self, t, y):
        return torch.sin(y @ self.a + t[:, None]) + (y @ self.b) ** 2


def test_tangent_to_the_sphere(generator):
    x = Sphere().uniform((30, 4), generator=generator, dtype=torch.float64)
    t = torch.rand(30, generator=generator, dtype=torch.float64)
    network = Wild(4)
    v = TangentField(Sphere(), network)(t, x)
    assert (v * x).sum(-1).abs().max() < 1e-14
    left = network(t, x) - v
    torch.testing.assert_close(left, (left * x).sum(-1, keepdim=True) * x, rtol=0, atol=1e-13)  # only the normal part


def test_periodic_on_the_torus_and_the_velocity_of_its_circles(generator):
    x = Torus().uniform((30, 3), generator=generator, dtype=torch.float64)
    t = torch.rand(30, generator=generator, dtype=torch.float64)
    field = TangentField(Torus(), Wild(6))
    turns = 2 * math.pi * torch.randint(-2, 3, x.shape, generator=generator).double()
    v = field(t, x)
    torch.testing.assert_close(field(t, x + turns), v, rtol=0, atol=1e-12)
    # The projection in the embedding: the best approximation of the network among velocities of the circles.
    push = torch.func.jvp(Torus().embed, (x,), (v,))[1]
    left = Wild(6)(t, Torus().embed(x)) - push
    for i in range(3):
        unit = torch.zeros_like(x)
        unit[:, i] = 1
        along = torch.func.jvp(Torus().embed, (x,), (unit,))[1]
        assert (left * along).sum(-1).abs().max() < 1e-13


def test_ambient_divergence_of_a_tangent_field_is_the_spheres_own(generator):
    """v = P_x c is the gradient of <c, x>, whose Laplacian on S^(d-1) is -(d-1) <c, x>."""

    class Constant(torch.nn.Module):
        def forward(self, t, y):
            return torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=y.dtype).expand_as(y)

    x = Sphere().uniform((30, 4), generator=generator, dtype=torch.float64)
    field = TangentField(Sphere(), Constant())
    t = torch.zeros(30, dtype=torch.float64)
    _, divergence = ExactDivergence().rate(lambda s, y: field(t, y), x)(0.0, x)
    height = x @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(divergence[:, 0], -3 * height, rtol=0, atol=1e-12)


def test_it_offers_no_more_than_its_network():
    field = TangentField(Sphere(), MLP(3, width=8, depth=1, classes=2))
    assert field.offers == {"velocity"}
    assert not field.euclidean
    assert TangentField(Torus(), MLP(4, width=8, depth=1)).euclidean
    assert isinstance(TangentField(Sphere(), Wild(3)).network, ModuleField)


def test_conditions_reach_the_network():
    class Labelled(torch.nn.Module):
        def forward(self, t, y, cond=None):
            return y.roll(1, -1) * (0 if cond is None else 1 + cond[:, None])

    x, t = torch.eye(3), torch.full((3,), 0.5)
    field = TangentField(Sphere(), Labelled())
    labels = torch.tensor([0, 1, 2])
    torch.testing.assert_close(field(t, x, labels), (1.0 + labels)[:, None] * x.roll(1, -1))
    assert not field(t, x).any()
