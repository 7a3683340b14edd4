"""What the benchmark beside the peers measures: optimality without a solver, times at equal error, divergences, sizes.

The peers are not installed with the tests; what takes their place does the same in a few lines.
"""

import csv
import itertools
import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import fmkit
from benchmarks.nfe import problems
from benchmarks.peers import divergence, footprint, packages, pairing, profile, results, sampling
from benchmarks.peers.page import page
from benchmarks.peers.results import Note, Row
from benchmarks.peers.sections import SECTIONS

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "benchmarks"


def permutation(partner):
    return np.eye(len(partner))[np.array(partner)]


@pytest.fixture(scope="module")
def published():
    return results.read(PUBLISHED / "peers.csv"), json.loads((PUBLISHED / "peers.json").read_text())


# The published page.


def test_the_page_is_what_its_rows_say(published):
    rows, record = published
    assert (PUBLISHED / "peers.md").read_text() == page(rows, record), "run python -m benchmarks.peers --page"
    assert list(record["sections"]) == [section.name for section in SECTIONS]
    assert not any(run["quick"] for run in record["sections"].values())
    assert all(len(r.seconds) in (0, record["sections"][r.section]["repeats"]) for r in rows)


@pytest.mark.parametrize(
    ("text", "section", "ours", "other"),
    [
        ("a bare loop with the same EMA", "training", "fmkit, EMA and clipping", "bare loop, EMA and clipping"),
        ("against torchcfm's OT-CFM", "coupled", "fmkit, ot", "torchcfm, OT-CFM"),
    ],
)
def test_a_published_verdict_by_another_hand(text, section, ours, other):
    """From the text of the CSV to the line of the page's table."""
    with (PUBLISHED / "peers.csv").open(newline="") as lines:
        seconds = {
            (line["contestant"], line["batch"]): [float(s) for s in line["seconds"].split()]
            for line in csv.DictReader(lines)
            if line["section"] == section
        }
    found = {
        batch: np.median([b / a for a, b in zip(taken, seconds[other, batch], strict=True)])
        for (name, batch), taken in seconds.items()
        if name == ours
    }
    batch, worst = min(found.items(), key=lambda item: item[1])
    (line,) = (
        line for line in (PUBLISHED / "peers.md").read_text().splitlines() if text in line and " asked " not in line
    )
    _, _, asked, measured, at, verdict = line.strip("| ").split(" | ")
    assert measured.startswith(f"{worst:.2f} (")
    assert at.endswith(f"batch {batch}")
    assert verdict.startswith("met") == (worst >= float(asked))


def test_a_certain_optimum_is_published(published):
    """fmkit's pairings are optimal to rounding, wherever they were measured."""
    own = [r.figure for r in published[0] if r.section == "pairing" and r.contestant == "fmkit"]
    assert len(own) == len(pairing.DATA) * len(pairing.DIMENSIONS) * len(pairing.BATCHES)
    assert max(own) < 1e-9


# Pairing.


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_the_optimum_for_an_optimal_pairing_and_below_it_for_any_other(seed):
    rng = np.random.default_rng(seed)
    cost = rng.random((6, 6))
    totals = {p: cost[range(6), list(p)].sum() for p in itertools.permutations(range(6))}
    best = min(totals, key=totals.get)
    assert pairing.lower_bound(cost, permutation(best)) == pytest.approx(totals[best], abs=1e-12)
    others = rng.choice(len(totals), 20)
    assert all(pairing.lower_bound(cost, permutation(list(totals)[k])) <= totals[best] + 1e-12 for k in others)


def test_an_excess_is_relative_to_the_optimum():
    """Against an independent solver's optimum, for a pairing with two partners exchanged."""
    x0, x1 = pairing.problem("clustered", 2, 40, 0)
    cost = ((x0[:, None] - x1[None]).double() ** 2).sum(2).numpy()
    rows, columns = linear_sum_assignment(cost)
    spoilt = columns.copy()
    spoilt[:2] = spoilt[1::-1]
    plans = {"good": lambda x0, x1: permutation(columns), "bad": lambda x0, x1: permutation(spoilt)}
    excess, warned = pairing.excesses(plans, [(x0, x1)])
    assert excess["good"] == pytest.approx(0, abs=1e-12)
    assert excess["bad"] == pytest.approx(cost[rows, spoilt].sum() / cost[rows, columns].sum() - 1)
    assert excess["bad"] > 0
    assert not warned


def test_what_a_solver_warns_of_is_told():
    import warnings

    def plan(x0, x1):
        warnings.warn("out of iterations\nand more", stacklevel=2)
        return np.eye(len(x0))

    problem = pairing.problem("Gaussian", 2, 8, 0)
    assert pairing.excesses({"w": plan}, [problem])[1] == {"w": "out of iterations"}


def test_clusters_are_eight_round_ones_at_one_distance():
    _, x1 = pairing.problem("clustered", 64, 2048, 0)
    centre = [x1[0]]
    for x in x1:
        if min((x - c).norm() for c in centre) > 25:  # points of one cluster are about sqrt(2 * 64) = 11 apart
            centre.append(x)
    groups = torch.stack(centre)
    nearest = torch.cdist(x1, groups).argmin(1)
    means = torch.stack([x1[nearest == k].mean(0) for k in range(len(groups))])
    assert len(means) == 8
    assert means.norm(dim=1) == pytest.approx([5 * 32**0.5] * 8, rel=0.03)
    assert (x1 - means[nearest]).var().item() == pytest.approx(1, rel=0.02)


def test_everyone_pairs_the_same_batches(monkeypatch):
    monkeypatch.setattr(pairing, "QUICK_DIMENSIONS", (2,))
    monkeypatch.setattr(pairing, "QUICK_BATCHES", (16,))
    seen = {"fmkit": [], "torchcfm": []}
    pairs = {name: lambda x0, x1, name=name: seen[name].append(x0.sum().item()) for name in seen}
    rows = list(pairing.rows(pairs, pairing.plans({}), repeats=5, quick=True))
    assert seen["fmkit"] == seen["torchcfm"]
    assert len(set(seen["fmkit"])) == 2 * pairing.PROBLEMS  # two kinds of data
    assert [(r.contestant, r.case) for r in rows] == list(itertools.product(seen, pairing.DATA))[::2] + list(
        itertools.product(seen, pairing.DATA)
    )[1::2]
    assert rows[0].figure == pytest.approx(0, abs=1e-12)


def test_a_slow_peer_is_left_out_and_told_of(monkeypatch):
    monkeypatch.setattr(pairing, "QUICK_DIMENSIONS", (2,))
    monkeypatch.setattr(pairing, "QUICK_BATCHES", (16,))
    pairs = {"fmkit": lambda x0, x1: 9.0, "torchebm": lambda x0, x1: None}
    monkeypatch.setattr(pairing, "PATIENCE", 0.0)
    found = list(pairing.rows(pairs, pairing.plans({}), repeats=1, quick=True))
    assert {r.contestant for r in found if isinstance(r, Row)} == {"fmkit"}
    assert next(n.text for n in found if isinstance(n, Note)).startswith("torchebm is left out from Gaussian, d = 2")


# Where a step's time goes.


def test_the_stages_are_all_seen_and_make_up_the_step(monkeypatch):
    rows = list(profile.rows(repeats=2, steps=3))
    assert [(r.contestant, r.case) for r in rows] == [
        (name, stage) for name in ("fmkit", "bare loop") for stage in (*profile.STAGES, profile.REST)
    ]
    absent = {("bare loop", "drawing the times"), ("bare loop", "the path's points and velocities")}
    for row in rows:
        assert (row.seconds == (0.0, 0.0)) is ((row.contestant, row.case) in absent)
        # the first steps are seen by the stopwatches alone, so of very few steps the rest may come out below 0
        assert all((s >= 0 or row.case == profile.REST) and s < 1 for s in row.seconds)


def test_a_stage_within_another_counts_once():
    class Clock:
        def outer(self):
            time.sleep(0.02)
            self.inner()

        def inner(self):
            time.sleep(0.05)

    clock, taken = Clock(), {"outer": 0.0, "inner": 0.0}
    clock.inner = profile._watched(clock.inner, "inner", taken)
    profile._watched(clock.outer, "outer", taken)()
    assert 0.02 <= taken["outer"] < 0.045
    assert 0.05 <= taken["inner"] < 0.075


# Divergence.


class Likelihood:
    """As flow_matching's solver: the divergence is inside of what it hands to the integrator of its module."""

    def __init__(self, velocity_model):
        self.velocity = velocity_model

    def compute_likelihood(self, x_1, log_p0, step_size, exact_divergence):
        def dynamics(t, state):
            value = self.velocity(x=state[0], t=t)
            return value, torch.full((len(value),), 1.0 if exact_divergence else 2.0)

        x, log_det = solver_module.odeint(dynamics, (x_1, torch.zeros(len(x_1))), torch.tensor([1.0, 0.0]))
        return x[-1], log_p0(x[-1]) + log_det[-1]


solver_module = SimpleNamespace(odeint=None)


@pytest.mark.parametrize(("kind", "mark"), [("exact", 1.0), ("Hutchinson", 2.0)])
def test_the_peers_own_function_is_taken_and_its_integrator_put_back(kind, mark):
    peer = SimpleNamespace(ODESolver=Likelihood, ode_solver=solver_module)
    x = torch.randn(3, 2)
    velocity, value = divergence.flow_matching(kind, lambda t, x: t * x, x, peer)()
    torch.testing.assert_close(velocity, 0.5 * x)
    assert value.tolist() == [mark] * 3
    assert solver_module.odeint is None


def test_the_divergence_measured_is_the_trace():
    matrix = torch.randn(4, 4)

    def f(t, x):
        return x @ matrix.T

    x = torch.randn(5, 4)
    torch.testing.assert_close(divergence.own("exact", f, x)()[1], matrix.trace().expand(5))
    torch.testing.assert_close(divergence.jacobian_trace(f, x[:1]), matrix.trace()[None])


def test_divergences_are_measured_at_every_size(monkeypatch):
    rows = list(divergence.rows(divergence.contestants({}), repeats=1, quick=True))
    assert [(r.case, r.dim, r.batch) for r in rows] == [
        (kind, dim, 8) for kind in ("exact", "Hutchinson") for dim in divergence.QUICK_DIMENSIONS
    ]
    assert all(r.figure < 1e-5 for r in rows if r.case == "exact")


# Sampling.


def settings(library, method, order, cost, steps=(4, 8, 16, 32)):
    """A method of error 1 / n^order and time cost n."""
    return [Row("sampling", f"{library} {method}", "f", 2, 8, n, (cost * n, 2 * cost * n), n**-order) for n in steps]


def test_the_time_at_an_error_lies_on_the_power_law():
    rows = settings("fmkit", "a", 2, 1e-3)
    assert sampling.at_error(rows, 10**-2) == pytest.approx([1e-2, 2e-2])
    assert sampling.at_error(rows, 4**-2 * 1.01) is None  # no step count is known to be bad enough
    assert sampling.at_error(rows, 32**-2 / 1.01) is None


def test_at_equal_error_the_fastest_methods_meet():
    """At an error of 1e-2: 10 steps of order 2, against 100 of order 1 or 10^(2/3) of order 3 that cost more."""
    rows = [*settings("fmkit", "a", 2, 1e-3), *settings("flow_matching", "b", 1, 1e-3, (50, 100, 200))]
    rows += settings("flow_matching", "c", 3, 5e-3)
    ((work, error, mine, theirs, faster),) = sampling.at_equal_error(rows, [1e-2])
    assert (work, error, mine, theirs) == ("f, batch 8", 1e-2, "fmkit a", "flow_matching c")
    assert faster.median == pytest.approx(5 * 10 ** (2 / 3) / 10)
    assert not sampling.at_equal_error(rows[:4], [1e-2])


def test_what_is_timed_ends_where_the_flow_does():
    oracle = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[[1.0, -2.0]], std=0.4)
    problem = problems.problem("", "condot", "", oracle, oracle, 8, 1e-8)
    flow = fmkit.Flow(fmkit.sources.Gaussian(), oracle, event_shape=2)
    case = sampling.Case("", 8, flow, oracle.velocity, oracle.velocity, problem)
    torch.testing.assert_close(
        sampling.own(case, "rk4", 64)(), oracle.flow_map(problem.x0, 0.0, 1.0), rtol=0, atol=1e-6
    )
    errors = [problem.error(sampling.own(case, "dopri5", tolerance)()) for tolerance in (1e-2, 1e-6)]
    assert errors[1] < errors[0] / 10


def test_the_peer_gets_the_steps_and_tolerances_that_it_is_told():
    asked = []

    class Peer:
        def __init__(self, velocity_model):
            self.velocity = velocity_model

        def sample(self, x, **options):
            asked.append(options)
            return x + self.velocity(x=x, t=torch.tensor(2.0 if options["step_size"] is None else 0.5))

    problem = SimpleNamespace(x0=torch.ones(3, 2))
    case = sampling.Case("", 3, None, lambda t, x: t[:, None] * x, lambda t, x: 2 * t[:, None] * x, problem)
    peer = SimpleNamespace(ODESolver=Peer)
    assert sampling.flow_matching(case, "midpoint", 8, peer)().unique().tolist() == [1.5]
    assert sampling.flow_matching(case, "midpoint", 8, peer, compile=True)().unique().tolist() == [2.0]
    asked.pop()
    assert sampling.flow_matching(case, "dopri5", 1e-3, peer)().unique().tolist() == [2.0]  # never asked beyond t = 1
    assert asked[0]["step_size"] == 1 / 8
    assert (asked[1]["rtol"], asked[1]["atol"]) == (1e-3, 1e-3)


# Footprint.


def test_an_import_is_timed_in_a_fresh_process():
    assert footprint.import_time("import time; time.sleep(0.05)") >= 0.05
    assert footprint.import_time("pass") < 0.05  # the interpreter's own start does not count


def test_sizes_count_files_but_not_what_python_writes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_bytes(b"1" * 10)
    (tmp_path / "y.so").write_bytes(b"2" * 5)
    (tmp_path / "a" / "x.cpython-311.pyc").write_bytes(b"3" * 100)
    assert footprint.size(tmp_path) == 15


def test_what_torch_needs_anyway_does_not_count(monkeypatch):
    reports = {"torch": ["torch", "sympy"], "thing": ["thing", "torch", "sympy", "Big_One"]}
    calls = []

    def pip(*words):
        calls.append(words)
        if words[1] == "--dry-run":
            names = reports[words[-1]]
            install = [{"metadata": {"name": n, "version": "1"}, "requested": n == words[-1]} for n in names]
            return json.dumps({"install": install})
        folder = Path(words[3])
        folder.mkdir()
        (folder / "file").write_bytes(b"1" * (10 if words[4:] == ("thing",) else 70))
        return ""

    footprint.chosen.cache_clear()
    monkeypatch.setattr(footprint, "pip", pip)
    assert footprint.installed("thing") == (10, 80, 2)
    assert calls[-1][4:] == ("Big_One==1",)
    footprint.chosen.cache_clear()


def test_a_size_that_cannot_be_had_is_told(monkeypatch):
    def sizes(source):
        if source == "b":
            raise subprocess.CalledProcessError(1, ["pip"])
        return 1e6, 3e6, 2

    found = list(footprint.rows({"a": "pass"}, {"a": "a", "b": "b"}, sizes, repeats=1))
    assert found[0].seconds[0] < 0.1
    assert [(r.contestant, r.case, r.setting, r.figure) for r in found[1:3]] == [
        ("a", "alone", None, 1.0),
        ("a", "with what it needs", 2.0, 3.0),
    ]
    assert found[3].text.startswith("The size of b is not known")


# The environment.


def test_the_environment_is_made_with_this_torch_and_peers_that_bring_none(tmp_path, monkeypatch):
    """The steps in their order: pip's own choice of torch would come with any peer that were installed before it."""
    said = []
    monkeypatch.setattr(
        packages.subprocess, "run", lambda step, **_: said.append(step) or SimpleNamespace(returncode=0)
    )
    folder = tmp_path / "peers"
    folder.mkdir()
    python = packages.make(folder)
    assert python == folder / "bin" / "python"
    assert said[0][-1] == str(folder)
    words = [step[4:] for step in said[1:]]
    assert words[1][-1] == "torch==" + torch.__version__.partition("+")[0]
    assert words[-1] == ["-q", "--no-deps", *packages.PEERS]
    packages.make(folder)
    assert len(said) == 5  # made once


def test_an_environment_that_is_half_made_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.subprocess, "run", lambda step, **_: SimpleNamespace(returncode=1))
    for _ in range(2):
        with pytest.raises(SystemExit, match="is not complete"):
            packages.make(tmp_path)


def test_what_a_peer_changes_for_the_whole_process_is_put_back(monkeypatch):
    precision = torch.get_float32_matmul_precision()

    def load(module):
        torch.set_float32_matmul_precision("medium")
        return SimpleNamespace(**{name: module for names in packages.NAMES.values() for name in names.get(module, ())})

    monkeypatch.setattr(packages.importlib, "import_module", load)
    peers = packages.load()
    assert torch.get_float32_matmul_precision() == precision
    assert peers["torchcfm"].OTPlanSampler == "torchcfm.optimal_transport"
    assert peers["flow_matching"].ode_solver == "flow_matching.solver"
