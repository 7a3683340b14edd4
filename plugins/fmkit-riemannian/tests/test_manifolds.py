"""Geometry against closed forms that the code does not use: Shoemake's slerp, circles for angles, differentiation."""

from __future__ import annotations

import math

import pytest
import torch

from fmkit import registry
from fmkit.errors import ArgumentError, SolverError
from fmkit_riemannian import Sphere, Torus
from fmkit_riemannian.manifolds import Manifold


def points(manifold, generator, n=50, d=4):
    return manifold.uniform((n, d), generator=generator, dtype=torch.float64)


def tangents(manifold, x, generator):
    z = torch.randn(manifold.embed(x).shape, generator=generator, dtype=x.dtype)
    return manifold.tangent(x, z)


def distance(manifold, x, y):
    return torch.linalg.vector_norm(manifold.log(x, y), dim=-1)


def test_log_inverts_exp_and_is_the_shortest(manifold, generator):
    x, y = points(manifold, generator), points(manifold, generator)
    torch.testing.assert_close(manifold.exp(x, manifold.log(x, y)), y, rtol=0, atol=1e-12)
    short = tangents(manifold, x, generator)
    short = short / torch.linalg.vector_norm(short, dim=-1, keepdim=True) * 3.0  # below pi, the reach of both
    torch.testing.assert_close(manifold.log(x, manifold.exp(x, short)), short, rtol=0, atol=1e-12)


def test_distance_is_a_metric(manifold, generator):
    x, y, z = (points(manifold, generator) for _ in range(3))
    torch.testing.assert_close(distance(manifold, x, y), distance(manifold, y, x), rtol=0, atol=1e-12)
    assert (distance(manifold, x, z) <= distance(manifold, x, y) + distance(manifold, y, z) + 1e-12).all()


def test_sphere_distance_is_the_angle(generator):
    x, y = points(Sphere(), generator), points(Sphere(), generator)
    torch.testing.assert_close(distance(Sphere(), x, y), torch.arccos((x * y).sum(-1)), rtol=0, atol=1e-12)


def test_a_geodesic_has_constant_speed_and_goes_on(manifold, generator):
    """gamma(s + r) is the geodesic from gamma(s) with velocity gamma'(s), at r."""
    x = points(manifold, generator)
    u = tangents(manifold, x, generator)
    s = torch.rand(len(x), generator=generator, dtype=torch.float64)
    y, v = manifold.geodesic(x, u, s)
    torch.testing.assert_close(torch.linalg.vector_norm(v, dim=-1), torch.linalg.vector_norm(u, dim=-1))
    there, here = manifold.geodesic(y, v, 0.7), manifold.geodesic(x, u, s + 0.7)
    torch.testing.assert_close(there[1], here[1], rtol=0, atol=1e-12)
    assert distance(manifold, there[0], here[0]).max() < 1e-12


def test_a_torus_is_a_circle_for_each_angle(generator):
    """Geodesics on the flat torus are geodesics of S^1 in every angle: the torus checked by the sphere."""
    x, y = points(Torus(), generator), points(Torus(), generator)

    def circles(angles):
        return torch.stack([angles.cos(), angles.sin()], dim=-1)

    s = torch.rand(len(x), generator=generator, dtype=torch.float64)
    z, v = Torus().geodesic(x, Torus().log(x, y), s)
    round_z, round_v = Sphere().geodesic(circles(x), Sphere().log(circles(x), circles(y)), s)
    torch.testing.assert_close(circles(z), round_z, rtol=0, atol=1e-12)
    torch.testing.assert_close(v[..., None] * torch.stack([-z.sin(), z.cos()], dim=-1), round_v, rtol=0, atol=1e-12)


def test_pull_inverts_the_differential_of_exp(generator):
    """(d exp_x)_u h by forward-mode differentiation, for h tangent at x."""
    sphere, x = Sphere(), points(Sphere(), generator)
    u, h = tangents(sphere, x, generator), tangents(sphere, x, generator)
    u = u * 2.5 / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    _, w = torch.func.jvp(lambda v: sphere.exp(x, v), (u,), (h,))
    torch.testing.assert_close(sphere.pull(x, u, w), h, rtol=0, atol=1e-11)
    torch.testing.assert_close(sphere.pull(x, torch.zeros_like(u), h), h, rtol=0, atol=1e-14)
    outward = w + 3 * sphere.exp(x, u)
    torch.testing.assert_close(sphere.pull(x, u, outward), h, rtol=0, atol=1e-11)


def test_pull_says_where_normal_coordinates_end(generator):
    x = points(Sphere(), generator)
    u = tangents(Sphere(), x, generator)
    u = u * 3.05 / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    with pytest.raises(SolverError, match=r"spans 3\.05 radians"):
        Sphere().pull(x, u, u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-12, 1e-6, 1e-3])
@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("d", [2, 3, 8])
def test_log_near_and_opposite(generator, dtype, gap, opposite, d):
    """Finite, tangent, of the right length, and it still arrives."""
    sphere, eps = Sphere(), torch.finfo(dtype).eps
    x = sphere.uniform((500, d), generator=generator, dtype=dtype)
    z = torch.randn(x.shape, generator=generator, dtype=dtype)
    y = sphere.nearest((-x if opposite else x) + gap * z)
    u = sphere.log(x, y)
    assert ((u * x).sum(-1).abs() <= 10 * eps).all()
    torch.testing.assert_close(sphere.exp(x, u), y, rtol=0, atol=20 * eps)
    length = torch.linalg.vector_norm(u, dim=-1)
    assert (length <= math.pi * (1 + 4 * eps)).all()
    if opposite and gap <= eps:
        torch.testing.assert_close(length, torch.full_like(length, math.pi), rtol=4 * eps, atol=0)
    torch.testing.assert_close(sphere.log(x, y), u, rtol=0, atol=0)


def test_a_step_of_no_length_has_its_gradient(generator):
    """d exp_x(u)/du at u = 0 is the identity on the tangent space, where |u| has no derivative."""
    x = points(Sphere(), generator, n=3)
    u = torch.zeros_like(x, requires_grad=True)
    a = tangents(Sphere(), x, generator)
    (grad,) = torch.autograd.grad((Sphere().exp(x, u) * a).sum(), u)
    torch.testing.assert_close(grad, a, rtol=0, atol=1e-14)


def test_torus_goes_the_short_way_round():
    x, y = torch.tensor([[0.1, 6.0]]), torch.tensor([[6.2, 0.2]])
    torch.testing.assert_close(Torus().log(x, y), torch.tensor([[6.1 - 2 * math.pi, 2 * math.pi - 5.8]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_on_the_torus_is_below_a_turn(dtype):
    x = torch.tensor([-1e-12, -0.0, 2 * math.pi, 7.0, -1.0, 1e-12], dtype=dtype)[:, None]
    y = Torus().nearest(x)
    assert (y >= 0).all()
    assert (y < 2 * math.pi).all()
    torch.testing.assert_close(y.cos(), x.cos())
    torch.testing.assert_close(y.sin(), x.sin(), rtol=0, atol=1e-6)


def test_log_volume_is_that_of_circle_sphere_and_torus():
    for d, area in {2: 2 * math.pi, 3: 4 * math.pi, 4: 2 * math.pi**2, 5: 8 * math.pi**2 / 3}.items():
        assert Sphere().log_volume((d,)) == pytest.approx(math.log(area), abs=1e-12)
    assert Sphere().log_volume((2, 3)) == pytest.approx(2 * math.log(4 * math.pi), abs=1e-12)
    assert Torus().log_volume((2, 3)) == pytest.approx(6 * math.log(2 * math.pi), abs=1e-12)


def test_points_off_the_sphere_are_refused(generator):
    x = points(Sphere(), generator)
    torch.testing.assert_close(Sphere().check(x * (1 + 5e-5)), x, rtol=0, atol=1e-12)
    x[7] *= 1.3
    x[9] *= 0.5
    with pytest.raises(ArgumentError, match=r"x0 has 2 rows off the unit sphere, the first, row 7, of norm 1\.3"):
        Sphere().check(x, "x0")
    with pytest.raises(ArgumentError, match="d >= 2"):
        Sphere().check(torch.ones(3, 1))
    with pytest.raises(ArgumentError, match="non-finite"):
        Sphere().check(torch.full((3, 2), math.nan))


def test_degrees_are_refused_as_angles():
    with pytest.raises(ArgumentError, match=r"x1 ranges over \[10, 350\], expected angles in \[0, 2 pi\)"):
        Torus().check(torch.tensor([[10.0], [350.0]]), "x1")


@pytest.mark.parametrize("name", ["sphere", "torus"])
def test_manifolds_are_a_kind_of_their_own(name):
    cls = registry.load(Manifold.group, name)
    assert isinstance(cls(), Manifold)
    assert registry.name_of(cls) == name
