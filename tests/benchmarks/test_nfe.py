"""The benchmark of solvers: its measure against closed forms, its rule by hand, and the published page by its rows."""

import csv
import json
import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

import fmkit
from benchmarks.nfe import measure, problems, results
from benchmarks.nfe.__main__ import main
from benchmarks.nfe.page import page
from benchmarks.nfe.results import Candidate, Row
from benchmarks.nfe.tables import RECOMMENDED, recommendation
from fmkit import registry
from fmkit.solvers import AB4, RK4, Euler, FixedStep, Heun, Midpoint
from fmkit.sources import Gaussian

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "benchmarks"


@pytest.fixture(scope="module")
def published():
    return results.read(PUBLISHED / "nfe.csv")


@pytest.fixture(scope="module")
def gaussian():
    """One Gaussian, whose flow is known."""
    oracle = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[[1.0, -2.0, 0.5]], std=[0.4])
    return oracle, problems.problem("exact", "condot", "gaussian", oracle, oracle, samples=16)


def row(path="p", data="d", solver="s", shift=1.0, nfe=10, error=1.0, **more):
    return Row("exact", path, data, solver, nfe, shift, None, 8, nfe, error, error, **more)


# The measure.


def test_the_end_of_a_problem_is_the_closed_form(gaussian):
    oracle, problem = gaussian
    torch.testing.assert_close(problem.end, oracle.flow_map(problem.x0, 0.0, 1.0), rtol=0, atol=1e-10)
    assert problem.reference_error < 1e-10


@pytest.mark.parametrize("name", problems.DATA)
def test_the_spread_is_that_of_samples(name, seeded):
    oracle = problems.mixtures()[name](fmkit.paths.CondOT())
    x = oracle.sample(100_000, seeded(0), dtype=torch.float64)
    assert problems.spread_of(oracle) == pytest.approx(x.var(0).sum().sqrt().item(), rel=0.01)


def test_points_moved_by_a_vector_are_off_by_its_length(gaussian):
    """In spreads of the data; and a law that is moved is as far off as its points, directions being round."""
    _, problem = gaussian
    away = torch.tensor([0.3, 0.4, 1.2], dtype=torch.float64)
    spread = 0.4 * math.sqrt(3)
    assert problem.error(problem.end + away) == pytest.approx(1.3 / spread, rel=1e-6)
    assert problem.law_error(problem.end + away) == pytest.approx(1.3 / spread, rel=0.25)


def test_samples_that_change_places_are_an_error_of_points_and_none_of_the_law(gaussian):
    _, problem = gaussian
    moved = problem.end.roll(1, 0)
    assert problem.error(moved) > 0.5
    assert problem.law_error(moved) == pytest.approx(0, abs=1e-12)


def test_every_field_starts_where_its_path_does():
    """VP's own interval, and the standard Gaussian."""
    for problem in problems.exact(4, tight=1e-6, data=["ring"]):
        path = problems.PATHS[problem.path]()
        assert problem.times == path.interval
        assert path.start(Gaussian()).log_prob(problem.x0).isfinite().all()
        assert problem.end.norm(dim=1).mean() > 3  # on the ring, no longer at the centre


@pytest.mark.parametrize("cls", [Euler, Midpoint, Heun, RK4, AB4])
@pytest.mark.parametrize("budget", [4, 5, 10, 37, 50, 200])
def test_a_budget_buys_the_most_steps(cls, budget, gaussian):
    _, problem = gaussian
    steps = measure.most_steps(cls, budget)

    def cost(steps):
        return cls(steps).solve(problem.f, problem.x0, problem.times).nfe[0]

    assert cost(steps + 1) > budget
    assert steps == 0 or cost(steps) <= budget


def test_every_ode_solver_of_fmkit_is_measured(published):
    names = {e.name for e in registry.entries("fmkit.solvers") if e.package == "fmkit"}
    there = {n for n in names if registry.load("fmkit.solvers", n).reads == "velocity"}
    assert {r.solver for r in published if r.kind == "exact"} == there
    assert {r.problem for r in published if r.kind == "exact"} == {
        (p, d) for p in problems.PATHS for d in problems.DATA
    }


# What follows from the rows.


def test_the_order_is_the_slope_of_the_asymptotic_range():
    """Errors of a law 3 n^-2.5: those too coarse for it, or at the reference's own error, do not count."""
    law = [row(nfe=n, error=3 * n**-2.5) for n in (20, 40, 80, 160, 320)]
    spoilt = [row(nfe=5, error=0.9), row(nfe=10, error=0.5), row(nfe=1000, error=1e-11)]
    assert results.order_of(spoilt + law) == pytest.approx(2.5, abs=1e-9)
    assert results.order_of(spoilt + law[:2]) is None


def test_a_budget_is_spent_but_not_overspent():
    rows = [row(nfe=8, error=0.1), row(nfe=10, error=0.2), row(nfe=11, error=0.01)]
    assert results.within(rows, 10) == {Candidate("s", 1.0): {("p", "d"): rows[1]}}


def test_the_winner_has_the_least_geometric_mean_of_ratios():
    """a: ratios 1 and 4, b: ratios 2 and 1; the sum of errors, or one great error, would say a."""
    rows = [row("p", solver="a", error=1.0), row("p", solver="b", error=2.0)]
    rows += [row("q", solver="a", error=0.004), row("q", solver="b", error=0.001)]
    assert results.winner(rows, 10) == Candidate("b", 1.0)
    score = results.scores(rows, 10)[Candidate("a", 1.0)]
    assert score.ratio == pytest.approx(2.0)
    assert (score.worst_ratio, score.worst_error) == (pytest.approx(4.0), 1.0)


def test_who_misses_a_field_cannot_win():
    rows = [row("p", solver="a"), row("q", solver="a"), row("p", solver="b", error=1e-9)]
    assert list(results.scores(rows, 10)) == [Candidate("a", 1.0)]


def test_of_equals_the_first_named_wins():
    rows = [row(solver="own", error=0.1), row(solver="foreign", error=0.1 * (1 - 1e-12))]
    assert results.winner(rows, 10).solver == "own"


def test_rows_come_back_from_the_file(tmp_path):
    rows = [row(error=0.012345678), row(solver="adaptive", shift=None)._replace(steps=None, tolerance=1e-5)]
    results.write(rows, tmp_path / "rows.csv")
    again = results.read(tmp_path / "rows.csv")
    assert again[0] == rows[0]._replace(error=0.01235, law_error=0.01235)
    assert again[1] == rows[1]


# The command.


def test_the_quick_run_writes_everything_and_measures_what_it_says(tmp_path, capsys):
    main(["--quick", "--out", str(tmp_path)])
    assert {f.name for f in tmp_path.iterdir()} == {"nfe.md", "nfe.csv", "nfe.json", "nfe-light.svg", "nfe-dark.svg"}
    rows = results.read(tmp_path / "nfe.csv")
    text = (tmp_path / "nfe.md").read_text()
    assert text == page(rows, json.loads((tmp_path / "nfe.json").read_text()))
    # one row again, by the flow that a user would make
    oracle = problems.mixtures()["ring"](fmkit.paths.Cosine())
    wanted = next(
        r for r in rows if (r.path, r.solver, r.steps, r.shift, r.kind) == ("cosine", "ab3", 19, 0.5, "exact")
    )
    (problem,) = problems.exact(8, 1e-7, ["ring"], ["cosine"])
    flow = fmkit.Flow(Gaussian(), oracle, event_shape=2)
    solver = fmkit.solvers.AB3(steps=19, grid=fmkit.solvers.ShiftedGrid(0.5))
    end = flow.transport(problem.x0, 0.0, 1.0, solver=solver)
    exact = flow.transport(problem.x0, 0.0, 1.0, solver=fmkit.solvers.Dopri5(1e-10, 1e-10))
    spread = math.sqrt(25 + 2)  # of the ring: radius² and two variances
    assert wanted.error == pytest.approx((end - exact).square().sum(1).mean().sqrt().item() / spread, rel=1e-3)
    assert wanted.nfe == 20


# The published page.


def test_the_page_is_what_its_rows_say(published):
    record = json.loads((PUBLISHED / "nfe.json").read_text())
    assert (PUBLISHED / "nfe.md").read_text() == page(published, record), "run python -m benchmarks.nfe --page"
    assert max(p["reference_error"] for p in record["problems"]) < 1e-10
    assert record["command"] == "python -m benchmarks.nfe"


@pytest.mark.parametrize("budget", RECOMMENDED)
def test_the_published_winners_by_another_hand(budget):
    """The rule once more, from the text of the CSV to the first column of the page's table."""
    errors = defaultdict(dict)
    with (PUBLISHED / "nfe.csv").open() as lines:
        for line in csv.DictReader(lines):
            if line["kind"] == "exact" and int(line["nfe"]) <= budget:
                key = (line["solver"], line["shift"])
                field = (line["path"], line["data"])
                if int(line["nfe"]) >= errors[key].get(field, (0,))[0]:
                    errors[key][field] = (int(line["nfe"]), float(line["error"]))
    complete = {key: there for key, there in errors.items() if len(there) == 9}
    logs = {key: np.mean([math.log(error) for _, error in there.values()]) for key, there in complete.items()}
    solver, shift = min(logs, key=logs.get)  # dividing by the least error on each field moves all means alike
    name = solver if shift in ("", "1") else f"{solver} {shift}"
    assert re.search(rf"^\| {budget} \| \*\*{re.escape(name)}\*\* \|", (PUBLISHED / "nfe.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", [n for n, cls in measure.solvers().items() if hasattr(cls, "order")])
def test_the_measured_orders_are_the_claimed_ones(name, published):
    cls = registry.load("fmkit.solvers", name)
    seen = results.orders([r for r in published if r.kind == "exact"], name)
    on_ring = [seen[path, "ring"] for path in problems.PATHS]  # smooth enough to be in the asymptotic range
    assert on_ring == pytest.approx([cls.order] * 3, abs=0.15)
    assert np.median(list(seen.values())) == pytest.approx(cls.order, abs=0.15)


def test_all_own_methods_are_on_every_grid(published):
    own = {n for n, cls in measure.solvers().items() if issubclass(cls, FixedStep)}
    for solver in own:
        assert {r.shift for r in published if r.solver == solver} == set(measure.SHIFTS)


@pytest.mark.parametrize("solver", ["ab3", "ab4", "abm4"])
def test_shorter_steps_near_the_data_help_where_it_is_narrow_and_hurt_where_it_is_wide(solver, published):
    def gain(rows):  # at 50 evaluations
        there = results.scores(rows, 50)
        return there[Candidate(solver, 1.0)].error / there[Candidate(solver, 0.5)].error

    exact = [r for r in published if r.kind == "exact"]
    assert gain([r for r in exact if r.data == "narrow"]) > 2
    assert gain([r for r in exact if r.data == "ring"]) < 0.5
    assert gain([r for r in exact if r.path == "vp"]) > 1


def test_the_default_is_much_better_than_a_looser_one(published):
    def worst(tolerance):
        found = [r.error for r in published if r.solver == "dopri5" and r.tolerance == tolerance and r.kind == "exact"]
        assert len(found) == 9
        return max(found)

    assert worst(1e-5) < 1e-3
    assert worst(1e-3) > 10 * worst(1e-5)


@pytest.mark.parametrize("file", ["README.md", "docs/quickstart.md", "docs/reference/solvers.md"])
def test_what_other_pages_recommend_is_what_the_table_says(file, published):
    """Wherever a page names a budget with a solver for it, as `| 20 | ... AB3(steps=19) |` or `# 20 evaluations`."""
    text = (ROOT / file).read_text()
    told = re.findall(r"^\| (\d+) \| `((?:AB|RK|Euler|Midpoint|Heun)\w*\(.*?\))` \|", text, re.MULTILINE)
    told += [(n, s.replace("fmkit.solvers.", "")) for s, n in re.findall(r"solver = (.*\))  # (\d+) evaluations", text)]
    assert told
    for budget, solver in told:
        assert solver == recommendation(published, int(budget))
