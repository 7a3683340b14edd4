"""Geodesic paths against slerp (Shoemake, 1985) and its derivative, and against the affine path where space is flat."""

from __future__ import annotations

import math

import pytest
import torch

from fmkit import paths
from fmkit.couplings import Independent
from fmkit.errors import ArgumentError, CombinationError
from fmkit.objectives import DataPrediction, NoisePrediction, ScoreFlow, ScoreMatching, VelocityMatching
from fmkit.sources import Gaussian
from fmkit_riemannian import GeodesicPath, Sphere, Torus


@pytest.mark.parametrize("schedule", [paths.CondOT(), paths.Cosine(), paths.Polynomial()])
def test_sphere_path_is_slerp(generator, schedule):
    x0, x1 = (Sphere().uniform((40, 5), generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(40, generator=generator, dtype=torch.float64)
    point = GeodesicPath(Sphere(), schedule).sample(t, x0, x1)

    kappa, angle = schedule.alpha(t)[:, None], torch.arccos((x0 * x1).sum(-1, keepdim=True))
    rate = torch.func.jvp(schedule.alpha, (t,), (torch.ones_like(t),))[1][:, None]
    slerp = (torch.sin((1 - kappa) * angle) * x0 + torch.sin(kappa * angle) * x1) / torch.sin(angle)
    slope = angle * (torch.cos(kappa * angle) * x1 - torch.cos((1 - kappa) * angle) * x0) / torch.sin(angle)
    torch.testing.assert_close(point.x, slerp, rtol=0, atol=1e-12)
    torch.testing.assert_close(point.velocity, rate * slope, rtol=0, atol=1e-11)


def test_torus_path_is_condot_where_no_seam_is_near(generator):
    x0, x1 = (2 + 2 * torch.rand(40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(40, generator=generator, dtype=torch.float64)
    got, flat = GeodesicPath(Torus()).sample(t, x0, x1), paths.CondOT().sample(t, x0, x1)
    torch.testing.assert_close(got.x, flat.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.velocity, flat.velocity, rtol=0, atol=1e-12)


def test_torus_path_does_not_depend_on_where_the_seam_is(generator):
    x0, x1 = (Torus().uniform((40, 3), generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(40, generator=generator, dtype=torch.float64)
    here = GeodesicPath(Torus()).sample(t, x0, x1)
    there = GeodesicPath(Torus()).sample(t, Torus().nearest(x0 + 1.234), Torus().nearest(x1 + 1.234))
    torch.testing.assert_close(there.velocity, here.velocity, rtol=0, atol=1e-12)
    torch.testing.assert_close(Torus().log(here.x, there.x), torch.full_like(x0, 1.234), rtol=0, atol=1e-12)


def test_it_begins_at_x0_and_ends_at_x1(manifold, generator):
    x0, x1 = (manifold.uniform((40, 4), generator=generator, dtype=torch.float64) for _ in range(2))
    path = GeodesicPath(manifold)
    torch.testing.assert_close(path.sample(0.0, x0, x1).x, x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(path.sample(1.0, x0, x1).x, x1, rtol=0, atol=1e-12)


def test_opposite_and_equal_points_are_finite_and_arrive(generator):
    x0 = Sphere().uniform((20, 3), generator=generator)
    for x1, speed in ((x0, 0.0), (-x0, math.pi)):
        point = GeodesicPath(Sphere()).sample(0.5, x0, x1)
        torch.testing.assert_close(point.velocity.norm(dim=-1), torch.full((20,), speed), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close((point.x * x0).sum(-1), torch.full((20,), math.cos(speed / 2)), rtol=0, atol=1e-6)


def test_points_off_the_manifold_are_refused_by_name(generator):
    on = Sphere().uniform((4, 3), generator=generator)
    with pytest.raises(ArgumentError, match="x0 has 4 rows off the unit sphere"):
        GeodesicPath(Sphere()).sample(0.5, 2 * on, on)
    with pytest.raises(ArgumentError, match="x1 has 4 rows off the unit sphere"):
        GeodesicPath(Sphere()).sample(0.5, on, 2 * on)
    with pytest.raises(ArgumentError, match=r"x0 ranges over .* expected angles"):
        GeodesicPath(Torus()).sample(0.5, on - 1, on.abs())


def test_a_schedule_that_does_not_run_from_0_to_1_is_refused():
    for schedule in (paths.VariancePreserving(), paths.ICFM()):
        with pytest.raises(CombinationError, match="cannot be the schedule of a geodesic"):
            GeodesicPath(Sphere(), schedule)


def test_only_the_velocity_can_be_regressed(manifold):
    path = GeodesicPath(manifold)
    VelocityMatching().check(path, Gaussian(), Independent())
    for objective in (DataPrediction(), NoisePrediction(), ScoreMatching(), ScoreFlow()):
        with pytest.raises(CombinationError, match="not affine"):
            objective.check(path, Gaussian(), Independent())


def test_flat_or_not():
    assert GeodesicPath(Torus()).euclidean
    assert not GeodesicPath(Sphere()).euclidean
