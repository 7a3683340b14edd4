"""End to end: fmkit's trainer, flow, config and files with the parts of this plugin."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import fmkit
from fmkit import config, recipes, specs
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import MLP
from fmkit.solvers import RK4, Dopri5
from fmkit_riemannian import (
    GeodesicMidpoint,
    GeodesicPath,
    GeodesicRK4,
    ManifoldUniform,
    Sphere,
    SphereMixture,
    TangentField,
    Torus,
    TorusMixture,
)


def train(manifold, data, ambient, width, steps):
    torch.manual_seed(0)
    trainer = fmkit.Trainer(
        path=GeodesicPath(manifold),
        field=TangentField(manifold, MLP(ambient, width=width, depth=2)),
        source=ManifoldUniform(manifold),
        solver=GeodesicMidpoint(manifold, 20),
        settings=fmkit.Settings(steps=steps, batch_size=256, lr=3e-3, decay="cosine", ema=0.99),
        callbacks=[],
    )
    return trainer.fit(data.load().train)


@pytest.fixture(scope="module")
def on_sphere():
    return train(Sphere(), SphereMixture(), ambient=3, width=128, steps=600)


@pytest.fixture(scope="module")
def on_torus():
    return train(Torus(), TorusMixture(), ambient=4, width=64, steps=400)


def shares(manifold, x, means, radius):
    """`(modes,)` the share of points within `radius` of each mean."""
    away = torch.stack([torch.linalg.vector_norm(manifold.log(mu.expand_as(x), x), dim=-1) for mu in means])
    return (away < radius).double().mean(1)


def test_a_flow_on_the_sphere_learns_its_bumps(on_sphere):
    data, generator = SphereMixture(), torch.Generator().manual_seed(0)
    x = on_sphere.sample(4000, generator=generator)
    assert (x.norm(dim=-1) - 1).abs().max() < 5e-7
    got, true = shares(Sphere(), x, data.means(), 0.5), shares(Sphere(), data.load().test, data.means(), 0.5)
    assert true.sum() > 0.9
    assert got.sum() > 0.8  # uniform points: 0.37
    torch.testing.assert_close(got, true, rtol=0, atol=0.05)


def test_no_density_in_ambient_coordinates(on_sphere):
    x = SphereMixture().load().test[:5]
    with pytest.raises(CombinationError, match="manifold"):
        on_sphere.log_prob(x)
    with pytest.raises(CombinationError, match="manifold"):
        on_sphere.sample_with_log_prob(5)


def test_there_and_back_again(on_sphere, on_torus):
    for flow, manifold, data in ((on_sphere, Sphere(), SphereMixture()), (on_torus, Torus(), TorusMixture())):
        x = data.load().test[:50]
        solver = GeodesicRK4(manifold, 50)
        back = flow.transport(x, 1.0, 0.0, solver=solver)
        manifold.check(back)
        again = flow.transport(back, 0.0, 1.0, solver=solver)
        assert manifold.log(x, again).abs().max() < 1e-3


def test_the_torus_density_is_one_in_all(on_torus):
    """The trapezoid rule on a grid is as good as exact for periodic functions: and this one must be periodic."""
    flow = copy.deepcopy(on_torus).to(torch.float64)
    side = torch.arange(64, dtype=torch.float64) * 2 * math.pi / 64
    grid = torch.cartesian_prod(side, side)
    density = flow.log_prob(grid, solver=RK4(60)).exp()
    assert density.sum().item() * (2 * math.pi / 64) ** 2 == pytest.approx(1.0, abs=1e-3)  # a plain MLP's is 0.94


def test_the_torus_density_does_not_depend_on_the_solver_or_the_winding(on_torus):
    flow, x = copy.deepcopy(on_torus).to(torch.float64), TorusMixture().load().test[:20].double()
    reference = flow.log_prob(x, solver=Dopri5(1e-7, 1e-7))
    torch.testing.assert_close(flow.log_prob(x, solver=GeodesicRK4(Torus(), 100)), reference, rtol=0, atol=1e-3)
    round_again = flow.log_prob(x + 2 * math.pi, solver=Dopri5(1e-7, 1e-7))
    torch.testing.assert_close(round_again, reference, rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="GeodesicMidpoint in 6 steps are off by about"):
        flow.sample_with_log_prob(50, solver=GeodesicMidpoint(Torus(), 6), generator=torch.Generator().manual_seed(0))
    finer = GeodesicMidpoint(Torus(), 40)
    y, log_prob = flow.sample_with_log_prob(50, solver=finer, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(y, solver=Dopri5(1e-7, 1e-7)), log_prob, rtol=0, atol=0.05)


def test_a_flow_on_the_torus_learns_its_density(on_torus):
    """Held-out log-likelihood within 0.1 nats of the mixture's own, which a uniform law misses by 1.5."""
    data = TorusMixture()
    x = data.load().test[:1000]
    got = on_torus.log_prob(x, solver=Dopri5(1e-5, 1e-5)).mean().item()
    normal = torch.distributions.Normal(0.0, data.std)
    parts = torch.stack([normal.log_prob(Torus().log(mu.expand_as(x), x)).sum(-1) for mu in data.means()])
    true = (parts.logsumexp(0) - math.log(3)).mean().item()
    uniform = -2 * math.log(2 * math.pi)
    assert true - uniform > 1.4
    assert true - 0.1 < got < true + 0.05


def test_saved_by_its_names_and_loaded(on_torus, tmp_path):
    on_torus.save(tmp_path / "torus.flow")
    again = fmkit.Flow.load(tmp_path / "torus.flow")
    assert isinstance(again.solver, GeodesicMidpoint)
    assert isinstance(again.solver.manifold, Torus)
    draws = [flow.sample(5, generator=torch.Generator().manual_seed(0)) for flow in (on_torus, again)]
    assert torch.equal(*draws)


def test_parts_nest_in_a_configuration():
    """A kind that a plugin brings is found through the annotations, like fmkit's own."""
    solver = specs.build(fmkit.Solver, {"name": "geodesic-rk4", "manifold": "sphere", "steps": 7}, "solver")
    assert isinstance(solver.manifold, Sphere)
    assert specs.describe(solver) == {"name": "geodesic-rk4", "manifold": "sphere", "steps": 7}
    path = specs.build(fmkit.ProbabilityPath, {"name": "geodesic", "manifold": "torus", "schedule": "cosine"}, "path")
    assert isinstance(path.schedule, fmkit.paths.Cosine)
    field = {"name": "tangent", "manifold": "sphere", "network": {"name": "mlp", "event_shape": 3, "width": 8}}
    assert isinstance(specs.build(fmkit.VectorField, field, "field"), TangentField)


@pytest.mark.parametrize(("recipe", "manifold"), [("sphere-mixture", Sphere()), ("torus-mixture", Torus())])
def test_the_recipes_run(recipe, manifold):
    """`fmkit train sphere-mixture` assembles, trains, and draws from the manifold."""
    layers = config.load_layers(recipes.find(recipe), None, ["trainer.steps=3", "solver.steps=5"])
    job = config.assemble(layers, progress=False)
    assert job.config.data == recipe
    flow = job.trainer.fit(job.split.train)
    assert flow.solver.steps == 5
    manifold.check(flow.sample(20))
    manifold.check(flow.transport(job.split.test[:20]))


def test_a_source_off_the_manifold_is_refused_before_the_training():
    field = TangentField(Sphere(), MLP(3, width=8, depth=1))
    with pytest.raises(CombinationError, match="a Gaussian source is off the sphere; use ManifoldUniform"):
        fmkit.Trainer(path=GeodesicPath(Sphere()), field=field)
    other = fmkit.sources.Uniform()  # not known to be off the sphere before it is drawn from
    trainer = fmkit.Trainer(GeodesicPath(Sphere()), field, source=other, settings=fmkit.Settings(steps=2), callbacks=[])
    with pytest.raises(ArgumentError, match=r"x0 has .* rows off the unit sphere"):
        trainer.fit(SphereMixture(size=100).load().train)


def test_a_network_that_tears_at_the_seam_is_refused():
    with pytest.raises(CombinationError, match="an MLP is not periodic .* wrap it in TangentField"):
        fmkit.Trainer(path=GeodesicPath(Torus()), field=MLP(2), source=ManifoldUniform(Torus()))
