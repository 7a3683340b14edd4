"""Parts as plain data and back, typed by the constructor's annotations."""

import json

import pytest
import torch

from fmkit import specs
from fmkit.errors import ConfigError, SavedFileError
from fmkit.fields import MLP, PredictionField, VectorField
from fmkit.objectives import LogitNormal, Objective, VelocityMatching
from fmkit.paths import ICFM, CondOT, ProbabilityPath, VariancePreserving
from fmkit.solvers import EulerMaruyama, Heun, ListedGrid, ShiftedGrid, Solver
from fmkit.sources import Empirical, Gaussian, Source
from fmkit.transforms import Affine, Transform


@pytest.mark.parametrize(
    ("base", "part", "spec"),
    [
        (ProbabilityPath, CondOT(), "condot"),
        (ProbabilityPath, CondOT(0.1), {"name": "condot", "sigma_min": 0.1}),
        (ProbabilityPath, VariancePreserving(beta_max=5.0), {"name": "vp", "beta_max": 5.0}),
        (Solver, Heun(3, ShiftedGrid(2.0)), {"name": "heun", "steps": 3, "grid": {"name": "shifted", "shift": 2.0}}),
        (
            Solver,
            EulerMaruyama(grid=ListedGrid((0, 0.5, 1))),
            {"name": "euler-maruyama", "grid": {"name": "listed", "positions": [0, 0.5, 1]}},
        ),
        (
            Objective,
            VelocityMatching(LogitNormal(std=2.0)),
            {"name": "velocity", "time": {"name": "logit-normal", "std": 2.0}},
        ),
        (VectorField, MLP((2, 3), width=4), {"name": "mlp", "event_shape": [2, 3], "width": 4}),
        (
            VectorField,
            PredictionField(MLP(2, 4), CondOT(), "data", (0.0, 0.9), True),
            {
                "name": "prediction",
                "network": {"name": "mlp", "event_shape": 2, "width": 4},
                "path": "condot",
                "view": "data",
                "interval": [0.0, 0.9],
                "gaussian": True,
            },
        ),
    ],
)
def test_there_and_back(base, part, spec):
    assert specs.describe(part) == spec
    through_json = json.loads(json.dumps(spec))
    built = specs.build(base, through_json, "here")
    assert type(built) is type(part)
    assert {k: type(v) for k, v in built.named_modules()} == {k: type(v) for k, v in part.named_modules()}
    assert specs.describe(built) == spec


def test_tensors_are_kept_beside_the_data():
    kept = {}
    data = torch.randn(4, 2, dtype=torch.float64)
    spec = specs.describe(Empirical(data), kept, "start")
    assert spec == {"name": "empirical", "data": {"tensor": "start.data"}}
    built = specs.build(Source, spec, "start", specs.Context(kept))
    assert torch.equal(built.data, data)
    # and without a place for them, or in a configuration, as nested lists
    assert specs.describe(Affine(torch.tensor([1.0, 2.0]))) == {"name": "affine", "shift": [1.0, 2.0]}
    assert specs.build(Transform, {"name": "affine", "shift": [1.0, 2.0]}, "t").shift.tolist() == [1.0, 2.0]


def test_a_part_is_passed_through():
    part = CondOT()
    assert specs.build(ProbabilityPath, part, "path") is part


def test_what_the_run_knows_is_supplied_where_it_is_absent():
    context = specs.Context(supplied={"event_shape": (5,), "classes": None})
    assert specs.build(VectorField, "mlp", "field", context).event_shape == (5,)
    given = specs.build(VectorField, {"name": "mlp", "event_shape": 7}, "field", context)
    assert given.event_shape == (7,)


@pytest.mark.parametrize(
    ("base", "spec", "message"),
    [
        (ProbabilityPath, "condt", r"^path: no paths? named 'condt' is installed; did you mean 'condot'\?"),
        (ProbabilityPath, 3, r"^path: got 3, expected a name or a mapping with a name"),
        (ProbabilityPath, {"sigma_min": 0.1}, r"^path: got .*expected a name or a mapping with a name"),
        (
            ProbabilityPath,
            {"name": "condot", "sigma": 0.1},
            r"^path\.sigma: CondOT has no parameter 'sigma'; did you mean 'sigma_min'\?",
        ),
        (
            ProbabilityPath,
            {"name": "condot", "sigma_min": "0.1"},
            r"^path\.sigma_min: got '0\.1', expected a valid number",
        ),
        (ProbabilityPath, {"name": "condot", "sigma_min": True}, r"^path\.sigma_min: got True"),
        (ProbabilityPath, {"name": "condot", "sigma_min": None}, r"^path\.sigma_min: got None"),
        (ProbabilityPath, {"name": "condot", "sigma_min": 2.0}, r"^path: sigma_min is 2\.0, expected"),
        (
            ProbabilityPath,
            {"name": "cosine", "n": 2},
            r"^path\.n: Cosine has no parameter 'n'; Cosine takes no parameters",
        ),
        (ProbabilityPath, "gaussian", r"^path: no paths? named 'gaussian'"),
        (Solver, {"name": "heun", "steps": 2.5}, r"^path\.steps: got 2\.5, expected a valid integer"),
        (Solver, {"name": "heun", "steps": True}, r"^path\.steps: got True"),
        (
            Solver,
            {"name": "heun", "grid": "shiftd"},
            r"^path\.grid: no time.grids? named 'shiftd'.*did you mean 'shifted'",
        ),
        (Solver, {"name": "heun", "grid": {"name": "shifted", "shift": "3"}}, r"^path\.grid\.shift: got '3'"),
        (
            Solver,
            {"name": "heun", "grid": {"name": "listed"}},
            r"^path\.grid\.positions: missing, and ListedGrid needs it",
        ),
        (
            Solver,
            {"name": "heun", "grid": {"name": "listed", "positions": [0, "1"]}},
            r"^path\.grid\.positions\.1: got '1'",
        ),
        (VectorField, "mlp", r"^path\.event_shape: missing, and MLP needs it"),
    ],
)
def test_mistakes_name_the_key_what_was_got_and_what_would_be_right(base, spec, message):
    with pytest.raises(ConfigError, match=message):
        specs.build(base, spec, "path")


def test_an_integer_is_a_number():
    assert specs.build(ProbabilityPath, {"name": "icfm", "sigma": 1}, "path").noise == 1


def test_kinds_in():
    assert specs.kinds_in(Solver | None) == [Solver]
    assert specs.kinds_in(float | None) == []
    assert specs.kinds_in(ICFM) == [ICFM]


def test_functions_are_not_data():
    with pytest.raises(SavedFileError, match=r"^solver\.lam is a function, which cannot be"):
        specs.describe(EulerMaruyama(4, lambda t: 1.0), {}, "solver")


def test_every_finite_scalar_is_kept_exactly():
    part = Gaussian(1 / 3, -1e-300)
    again = specs.build(Source, json.loads(json.dumps(specs.describe(part))), "s")
    assert (again.std, again.mean) == (1 / 3, -1e-300)


def test_scalars_from_numpy_are_numbers():
    import numpy as np

    part = Gaussian(np.float32(0.5), np.float64(2.0))
    assert json.loads(json.dumps(specs.describe(part))) == {"name": "gaussian", "std": 0.5, "mean": 2.0}
