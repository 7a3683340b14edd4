"""One law for each kind of part, over everything that is registered, whoever registered it."""

import inspect
import json
import math

import pytest
import torch

from fmkit import registry, specs
from fmkit.couplings import Coupling
from fmkit.divergence import Divergence
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import MLP, ClassifierFree, VectorField
from fmkit.objectives import Objective
from fmkit.objectives.times import TimeSampler
from fmkit.parts import Part, parameters_of
from fmkit.paths import AffinePath, CondOT, ProbabilityPath
from fmkit.solvers import Solver
from fmkit.solvers.grids import TimeGrid
from fmkit.sources import Source, Uniform
from fmkit.transforms import Transform

KINDS = {
    "fmkit.paths": ProbabilityPath,
    "fmkit.sources": Source,
    "fmkit.couplings": Coupling,
    "fmkit.fields": VectorField,
    "fmkit.objectives": Objective,
    "fmkit.time_samplers": TimeSampler,
    "fmkit.time_grids": TimeGrid,
    "fmkit.solvers": Solver,
    "fmkit.divergences": Divergence,
    "fmkit.transforms": Transform,
}
EVERY = [e for e in registry.entries() if e.group in KINDS]

# What a part needs that has no default: values by parameter name.
NEEDED = {
    "data": lambda: torch.linspace(-1, 1, 40).reshape(20, 2),
    "source": lambda: Uniform(0.0, 1.0),
    "scale": lambda: 2.0,
    "std": lambda: 0.5,
    "positions": lambda: [0.0, 0.3, 1.0],
    "event_shape": lambda: (2,),
    "means": lambda: torch.tensor([[-1.0, 0.0], [1.0, 0.5]]),
    "network": lambda: MLP(2, width=4, depth=1, classes=2),
    "field": lambda: MLP(2, width=4, depth=1, classes=2),
    "worse": lambda: MLP(2, width=3, depth=1, classes=2),
    "guidance": lambda: ClassifierFree(MLP(2, width=4, depth=1, classes=2), 2.0),
    "module": lambda: Net(),
    "path": CondOT,
}


class Net(torch.nn.Module):
    """A user's network."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, t, x):
        return self.layer(torch.cat([x, t[:, None].to(x.dtype)], 1))


def example(entry) -> Part:
    """The part with what it needs: the values above, or the first registered part of the kind it asks for."""
    cls, values = entry.load(), {}
    for name, parameter in parameters_of(cls).items():
        if parameter.default is not inspect.Parameter.empty:
            continue
        kinds = [kind.group for kind in specs.kinds_in(parameter.annotation)]
        if name in NEEDED:
            values[name] = NEEDED[name]()
        elif kinds and (first := next(iter(registry.entries(kinds[0])), None)):
            values[name] = example(first)
        else:
            pytest.skip(f"{entry.qualified} needs {name}")
    try:
        return cls(**values)
    except ArgumentError as error:
        if "event_shape" not in str(error):
            raise
        return cls(**values | {"event_shape": (1, 4, 6)})  # a network for images


def of_kind(kind):
    return pytest.mark.parametrize("entry", [e for e in EVERY if e.group == f"fmkit.{kind}"], ids=lambda e: e.qualified)


every = pytest.mark.parametrize("entry", EVERY, ids=lambda e: f"{e.kind}:{e.qualified}")


@every
def test_is_of_its_kind_and_documented(entry):
    cls = entry.load()
    assert issubclass(cls, KINDS[entry.group])
    assert cls.group == entry.group
    assert not inspect.isabstract(cls)
    assert cls.__doc__
    assert registry.name_of(cls) in (entry.name, entry.qualified)


@every
def test_is_described_and_built_again(entry):
    part, tensors = example(entry), {}
    spec = json.loads(json.dumps(specs.describe(part, tensors)))
    again = specs.build(KINDS[entry.group], spec, "part", specs.Context(tensors, using=list(part.modules())))
    assert type(again) is type(part)
    assert json.loads(json.dumps(specs.describe(again, {}))) == spec
    again.load_state_dict(part.state_dict())


@every
def test_takes_no_unknown_argument(entry):
    with pytest.raises(TypeError, match="no_such_argument"):
        entry.load()(no_such_argument=1)


# -- paths ------------------------------------------------------------------------------------------------------------


def euclidean(entry):
    path = example(entry)
    if not path.euclidean:
        pytest.skip("a manifold's own tests know its points")
    return path


@of_kind("paths")
def test_a_paths_velocity_is_the_rate_of_its_point(entry, seeded):
    path, n, h = euclidean(entry), 64, 1e-5
    low, high = path.interval
    x0, x1 = (torch.randn(n, 3, generator=seeded(i), dtype=torch.float64) for i in range(2))
    t = low + (high - low) * (0.02 + 0.96 * torch.rand(n, generator=seeded(2), dtype=torch.float64))
    here, before, after = (path.sample(s, x0, x1, generator=seeded(3)) for s in (t, t - h, t + h))
    slope = (after.x - before.x) / (2 * h)
    assert ((here.velocity - slope).abs().max() / slope.abs().max()).item() < 1e-6


@of_kind("paths")
def test_a_path_begins_at_its_start_and_ends_at_the_data(entry, seeded):
    """x at the beginning, less the data's share, follows `start`; x at the end is the data but for what it says."""
    path, source = euclidean(entry), registry.load("fmkit.sources", "gaussian")()
    low, high = path.interval
    n = 50_000
    x0 = source.sample((n, 1), generator=seeded(0), dtype=torch.float64)
    zeros = torch.zeros_like(x0)
    begin = path.sample(low, x0, zeros, generator=seeded(1)).x
    start = path.start(source).sample((n, 1), generator=seeded(2), dtype=torch.float64)
    assert begin.mean().item() == pytest.approx(start.mean().item(), abs=7 * start.std().item() / math.sqrt(n))
    assert begin.std().item() == pytest.approx(start.std().item(), rel=7 / math.sqrt(2 * n))
    end = path.sample(high, zeros, x0, generator=seeded(1)).x
    assert (end - x0).std().item() < 0.11


@of_kind("paths")
def test_a_paths_marginal_velocity_is_the_closed_forms(entry, mixtures, schedules, seeded):
    """Theorem 1, by Monte Carlo: E[(conditional velocity - u_t(x)) phi(x)] = 0 for every phi, within five errors."""
    if entry.name not in schedules:
        pytest.skip("no closed form of it here")
    path, schedule, mixture, n = example(entry), schedules[entry.name], mixtures[2], 200_000
    x1, x0 = mixture.sample(n, seeded(0)), torch.randn(n, 2, generator=seeded(1), dtype=torch.float64)
    for at in (0.15, 0.5, 0.85):
        t = torch.full((n,), at, dtype=torch.float64)
        point = path.sample(t, x0, x1, generator=seeded(2))
        error = point.velocity - mixture.velocity(schedule, t, point.x)
        scale = point.x.std()
        for phi in (torch.ones_like(point.x), point.x / scale, torch.sin(3 * point.x / scale), (point.x / scale) ** 2):
            terms = (error * phi).sum(1)
            assert terms.mean().abs() < 5 * terms.std() / math.sqrt(n)


@of_kind("paths")
def test_an_affine_paths_rates_are_its_derivatives(entry):
    path = example(entry)
    if not isinstance(path, AffinePath):
        pytest.skip("not affine")
    low, high = path.interval
    t = low + (high - low) * torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    for closed, derived in zip(path.rates(t), AffinePath.rates(path, t), strict=True):
        if closed is not None:
            torch.testing.assert_close(closed, derived, rtol=1e-9, atol=1e-12)


@of_kind("paths")
def test_a_path_is_seeded_by_its_generator_alone(entry, seeded):
    path = euclidean(entry)
    x0, x1 = torch.zeros(8, 2), torch.ones(8, 2)
    before = torch.get_rng_state()
    first, again = (path.sample(0.5, x0, x1, generator=seeded(1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, again.x)
    assert first.x.dtype == torch.float32
    assert first.t.dtype == torch.float64


# -- sources ----------------------------------------------------------------------------------------------------------


@of_kind("sources")
def test_a_source_is_seeded_and_has_the_shape_and_precision_asked_for(entry, seeded):
    source = example(entry)
    before = torch.get_rng_state()
    cond = torch.ones(6, 2) if source.of_condition else None
    draws = [source.sample((6, 2), cond=cond, generator=seeded(s), dtype=torch.float64) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (6, 2)
    assert draws[0].dtype == torch.float64


@of_kind("sources")
def test_a_sources_density_integrates_to_one_and_to_its_entropy(entry, seeded):
    """In one dimension: the integral of p is 1, and samples have the mean log-density that the integral has."""
    source = example(entry)
    drawn_for, grid_for = (torch.ones(n, 1) if source.of_condition else None for n in (50_000, 24_001))
    try:
        x = source.sample((50_000, 1), cond=drawn_for, generator=seeded(0), dtype=torch.float64)
        drawn = source.log_prob(x, drawn_for)
    except CombinationError:
        with pytest.raises(CombinationError, match="no density"):
            source.log_prob(x, drawn_for)
        return
    except ValueError:
        pytest.skip("no one-dimensional events")
    grid = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
    log = source.log_prob(grid, grid_for)
    density = log.exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=2e-3)
    entropy = -torch.trapezoid(torch.where(density > 0, density * log, 0.0), grid[:, 0])
    assert -drawn.mean().item() == pytest.approx(entropy.item(), abs=5 * drawn.std().item() / math.sqrt(50_000) + 2e-3)


# -- couplings --------------------------------------------------------------------------------------------------------


@of_kind("couplings")
def test_a_coupling_pairs_rows_it_was_shown(entry, seeded):
    coupling = example(entry)
    x0, x1 = (torch.randn(32, 2, generator=seeded(i)) for i in range(2))
    labels = torch.arange(32) % 3
    assert all(0 <= p <= 1 for p in coupling.prepare(Uniform(), x1, labels, seed=0))
    before = torch.get_rng_state()
    i0, i1 = coupling.pair(x0, x1, None, labels, generator=seeded(0))
    again = coupling.pair(x0, x1, None, labels, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(i0, again[0])
    assert torch.equal(i1, again[1])
    assert i0.shape == i1.shape
    for i in (i0, i1):
        assert i.dtype == torch.int64
        assert ((i >= 0) & (i < 32)).all()


# -- time samplers and grids ------------------------------------------------------------------------------------------


@of_kind("time_samplers")
def test_a_time_sampler_draws_by_its_inverse_distribution(entry, seeded):
    sampler = example(entry)
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = sampler.draw(u)
    assert (t.diff() >= 0).all()
    assert 0 <= t[0] < 0.02
    assert 0.98 < t[-1] <= 1
    drawn = sampler.sample(1000, (0.3, 0.4), generator=seeded(0))
    assert drawn.dtype == torch.float64
    assert 0.3 <= drawn.min() < drawn.max() <= 0.4


@of_kind("time_grids")
def test_a_time_grid_rises_from_0_to_1(entry):
    grid = example(entry)
    fractions = grid.fractions(2)
    assert (fractions[0], fractions[-1], len(fractions)) == (0.0, 1.0, 3)
    assert fractions == sorted(set(fractions))


# -- solvers ----------------------------------------------------------------------------------------------------------


def bernoulli(t, x):
    return x**2 * math.cos(float(t))


@of_kind("solvers")
def test_a_solver_has_the_order_it_says_and_reaches_the_closed_form(entry, observed_order):
    solver = example(entry)
    if solver.reads != "velocity" or any(p.default is p.empty for p in parameters_of(type(solver)).values()):
        pytest.skip("not an ODE solver, or one for the points of a manifold")
    x0 = torch.tensor([[0.3, 0.6, -0.5]], dtype=torch.float64)
    want = 1 / (1 / x0 - math.sin(1.0))
    error = (solver.solve(bernoulli, x0, (0.0, 1.0)).final - want).abs().max().item()
    assert error < 2e-2
    if hasattr(solver, "order") and "steps" in parameters_of(type(solver)):
        steps = [80, 160, 320]
        errors = [
            (type(solver)(steps=n).solve(bernoulli, x0, (0.0, 1.0)).final - want).abs().max().item() for n in steps
        ]
        assert observed_order(steps, errors) == pytest.approx(solver.order, abs=0.15)


# -- divergences and transforms ---------------------------------------------------------------------------------------


@of_kind("divergences")
def test_a_divergence_is_exact_for_a_diagonal_jacobian(entry, seeded):
    x = torch.randn(4, 3, generator=seeded(0), dtype=torch.float64)
    velocity, divergence = example(entry).rate(lambda t, y: t * y**2, x, seeded(1))(0.5, x)
    torch.testing.assert_close(velocity, 0.5 * x**2)
    torch.testing.assert_close(divergence.mean(1), x.sum(1))


@of_kind("transforms")
def test_a_transform_inverts_and_knows_its_determinant(entry, seeded):
    transform, x = example(entry), torch.randn(4, 3, generator=seeded(0), dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(transform(x)), x)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda r: transform(r[None])[0], row) for row in x])
    torch.testing.assert_close(transform.log_det(x), torch.linalg.slogdet(jacobian).logabsdet)


# -- fields and objectives --------------------------------------------------------------------------------------------


@of_kind("fields")
def test_a_field_offers_only_what_it_has_and_treats_rows_alone(entry, seeded):
    field = example(entry).eval()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=seeded(0))
    field, t = field.double(), torch.rand(5, generator=seeded(1), dtype=torch.float64)
    x = torch.randn(5, *(field.event_shape or (2,)), generator=seeded(2), dtype=torch.float64)
    whole = field(t, x)
    assert whole.shape == x.shape
    assert whole.abs().max() > 0
    torch.testing.assert_close(field(t[3:4], x[3:4]), whole[3:4])
    for protocol in field.offers:
        assert callable(getattr(field, protocol))
    assert "velocity" not in field.offers or torch.equal(field.velocity(t, x), whole)
    low, high = field.interval
    assert 0 <= low < high <= 1


@of_kind("objectives")
def test_an_objectives_loss_falls_to_zero_where_the_target_is_known(entry, seeded):
    """With one data point c the target is a function of (t, x), and the flow runs straight at c as 1 - t falls."""
    objective, path, c = example(entry), CondOT(), 0.7

    class Knows(torch.nn.Module):
        def forward(self, t, x, cond=None):
            t = t[:, None]
            return path.convert(t[:, 0], x, getattr(objective, "view", "velocity"), data=torch.full_like(x, c))

    if not hasattr(objective, "view"):
        pytest.skip("not a regression of a view")
    x0, x1 = torch.randn(64, 2, generator=seeded(0), dtype=torch.float64), torch.full((64, 2), c, dtype=torch.float64)
    loss = objective.loss(Knows(), path, (x0, x1), generator=seeded(1))
    assert loss.value.shape == loss.t.shape == (64,)
    assert loss.value.max() < 1e-9
    assert objective.loss(_Zero(), path, (x0, x1), generator=seeded(1)).value.min() > 0
    field = objective.field(Knows(), path)
    begin, end = field.interval[0], 0.99
    final = registry.load("fmkit.solvers", "rk4")(50).solve(
        lambda t, x: field(torch.full((64,), t, dtype=torch.float64), x), x0, (begin, end)
    )
    torch.testing.assert_close(final.final, x1 + (1 - end) / (1 - begin) * (x0 - x1), rtol=0, atol=1e-8)


class _Zero(torch.nn.Module):
    def forward(self, t, x, cond=None):
        return torch.zeros_like(x)
