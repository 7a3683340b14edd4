"""Every path with every objective, coupling, source and solver: it trains and samples, or is refused with a reason."""

import functools

import pytest
import torch

from fmkit import registry
from fmkit.errors import CombinationError
from fmkit.fields import MLP
from fmkit.parts import parameters_of
from fmkit.paths import AffinePath
from fmkit.training import Settings, Trainer

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 1


def complete(group):
    """Names of the parts that need nothing but their defaults."""
    found = []
    for entry in registry.entries(group):
        if all(p.default is not p.empty for p in parameters_of(entry.load()).values()):
            found.append(entry.qualified)
    return found


PATHS, OBJECTIVES = complete("fmkit.paths"), complete("fmkit.objectives")
COUPLINGS = [n for n in complete("fmkit.couplings") if n != "fmkit/pairs"]  # pairs come with the data
SOURCES, SOLVERS = complete("fmkit.sources"), complete("fmkit.solvers")
SOME = ("fmkit/condot", "fmkit/vp", "fmkit/icfm")  # plain, on an interval of its own, and with latent noise


def make(group, name, **arguments):
    return registry.load(f"fmkit.{group}", name)(**arguments)


def cheap(name):
    cls = registry.load("fmkit.solvers", name)
    named = parameters_of(cls)
    if "steps" in named:
        return cls(steps=4)
    return cls(rtol=1e-2, atol=1e-2) if "rtol" in named else cls()


LABELLED = ("fmkit/conditional-ot", "fmkit/conditional-semidiscrete")  # they have no meaning without conditions

# A fit of a few steps is a fit.
FEW = {"fmkit/semidiscrete": {"steps": 20}, "fmkit/conditional-semidiscrete": {"steps": 20}}


def train(path, objective, coupling="fmkit/independent", source="fmkit/gaussian"):
    torch.manual_seed(0)
    labels = torch.arange(64) % 3 if coupling in LABELLED else None
    trainer = Trainer(
        path=make("paths", path),
        field=MLP(2, width=8, depth=1, classes=None if labels is None else 3),
        objective=make("objectives", objective),
        coupling=make("couplings", coupling, **FEW.get(coupling, {})),
        source=make("sources", source),
        settings=Settings(steps=3, batch_size=16, lr=1e-3, loss_floor=False),
        callbacks=[],
    )
    return trainer.fit(DATA, labels)


@functools.cache
def trained(path, objective):
    return train(path, objective)


def has_latent(path):
    part = make("paths", path)
    return isinstance(part, AffinePath) and part.has_latent


@functools.cache
def reason(path, objective, coupling="fmkit/independent", source="fmkit/gaussian"):
    """Why a training combination has no meaning, or None: the rule, told without fmkit's own check."""
    view = objective.removeprefix("fmkit/")
    if view != "velocity" and has_latent(path):
        return "latent noise"
    if view.startswith("score") and source != "fmkit/gaussian":
        return "standard Gaussian source"
    if view.startswith("score") and coupling != "fmkit/independent":
        return "no longer Gaussian"
    return None


@pytest.mark.filterwarnings("ignore:log-densities by")  # eight steps are few, and fmkit says so
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_path_with_every_objective(path, objective, seeded):
    if refusal := reason(path, objective):
        with pytest.raises(CombinationError, match=refusal):
            trained(path, objective)
        return
    flow = trained(path, objective)
    x = flow.sample(8, solver=make("solvers", "heun", steps=8), generator=seeded(0))
    assert x.shape == (8, 2)
    assert torch.isfinite(x).all()
    log_prob = flow.log_prob(DATA[:4], solver=make("solvers", "heun", steps=8))
    assert torch.isfinite(log_prob).all()


@pytest.mark.filterwarnings("ignore:log-densities by")
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")  # four implicit steps of a stiff field
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "every"])
def test_every_path_and_objective_with_every_solver(path, solver, every, seeded):
    """Every two of them; all three together are for the slow run."""
    for objective in OBJECTIVES:
        if reason(path, objective) or not (every or objective == "fmkit/velocity" or path in SOME):
            continue
        flow, integrator = trained(path, objective), cheap(solver)
        if integrator.reads not in flow.field.offers:
            assert has_latent(path)
            with pytest.raises(CombinationError, match="an SDE needs a standard Gaussian source"):
                flow.sample(2, solver=integrator, generator=seeded(0))
            continue
        assert torch.isfinite(flow.sample(2, solver=integrator, generator=seeded(0))).all(), objective
        if integrator.reads == "velocity" and objective == "fmkit/velocity":
            assert torch.isfinite(flow.sample_with_log_prob(2, solver=integrator, generator=seeded(0))[1]).all()
        elif integrator.reads == "stochastic":
            with pytest.raises(CombinationError, match="a log-density needs"):
                flow.log_prob(DATA[:2], solver=integrator)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_objective_with_every_coupling_and_source(objective, coupling, source, seeded):
    for path in PATHS:
        if refusal := reason(path, objective, coupling, source):
            with pytest.raises(CombinationError, match=refusal):
                train(path, objective, coupling, source)
            continue
        if path not in SOME:
            continue
        flow = train(path, objective, coupling, source)
        label = 0 if coupling in LABELLED else None
        assert torch.isfinite(flow.sample(2, label, solver=cheap("euler"), generator=seeded(0))).all()
        if (coupling, source) != ("fmkit/independent", "fmkit/gaussian"):
            with pytest.raises(CombinationError, match="standard Gaussian source, the independent coupling"):
                flow.sample(2, label, solver=cheap("euler-maruyama"), generator=seeded(0))
