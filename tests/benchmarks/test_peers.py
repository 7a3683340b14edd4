"""The benchmark beside the peers: its turns, its ratios and verdicts by hand, and loops that do the same work.

The peers are not installed with the tests: small stand-ins that do the textbook's arithmetic take their place.
"""

import json
import re
from types import SimpleNamespace

import pytest
import torch

import fmkit
from benchmarks.peers import __main__ as command
from benchmarks.peers import contest, goals, loops, packages, results, tables, training
from benchmarks.peers.page import page
from benchmarks.peers.results import Note, Row, Spread


def row(contestant, seconds, section="s", case="", dim=2, batch=8, **more):
    return Row(section, contestant, case, dim, batch, seconds=tuple(seconds), **more)


# Turns and ratios.


def test_everyone_works_once_a_turn_and_another_one_begins_each_time():
    order = []
    work = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    seconds = contest.turns(work, 4, at_least=0.0)
    assert order[6:] == list("abc" + "bca" + "cab" + "abc")  # two rounds before: the first call, and how long one takes
    assert seconds == dict.fromkeys("abc", (1.0,) * 4)


def test_own_time_counts_where_it_is_returned_and_the_clock_elsewhere(monkeypatch):
    clock = iter([10.0, 13.0, 20.0, 25.0])
    monkeypatch.setattr(contest.time, "perf_counter", lambda: next(clock))
    assert contest.once(lambda: None) == 3.0
    assert contest.once(lambda: 0.5) == 0.5


def test_short_work_is_repeated_within_a_turn_and_counts_with_its_mean():
    taken = iter([9.0, 0.1, *(0.1, 0.3) * 3])
    assert contest.turns({"a": lambda: next(taken)}, 3, at_least=0.2) == {"a": (0.2, 0.2, 0.2)}


def test_a_ratio_is_taken_within_turns():
    """A machine that grows slower from turn to turn changes no ratio; the ratio of the medians would be 1.5."""
    ours, other = row("a", [1.0, 2.0, 8.0]), row("b", [2.0, 3.0, 40.0])
    assert results.ratio(ours, other) == Spread(2.0, 1.75, 3.5)
    with pytest.raises(ValueError):
        results.ratio(ours, row("b", [1.0]))


def test_ratios_compare_the_same_work_only():
    rows = [row("a", [1.0], batch=8), row("a", [1.0], batch=16), row("b", [3.0], batch=16), row("b", [9.0], dim=3)]
    assert results.ratios(rows, "a", "b") == [(rows[1], Spread(3.0, 3.0, 3.0))]


def test_rows_come_back_from_the_file(tmp_path):
    rows = [row("a, b", [0.001234567, 2.0], case="x", figure=1e-9), Row("s", "c", setting=4.0)]
    results.write(rows, tmp_path / "rows.csv")
    again = results.read(tmp_path / "rows.csv")
    assert again == [rows[0]._replace(seconds=(0.001235, 2.0)), rows[1]]


# Goals.


def test_a_goal_is_missed_wherever_its_median_is_too_small():
    rows = [row("a", [1.0] * 3, batch=b) for b in (1, 2, 3)]
    rows += [row("b", [4.0, 1.0, 2.0], batch=1), row("b", [1.9] * 3, batch=2), row("b", [5.0] * 3, batch=3)]
    verdict = goals.Goal("s", "", 2.0, goals.between("s", "a", "b")).verdict(rows)
    assert verdict == (Spread(*[pytest.approx(1.9)] * 3), "d = 2, batch 2", ["d = 2, batch 2"], 3)
    assert not goals.Goal("s", "", 1.9, goals.between("s", "a", "b")).verdict(rows).missed
    assert goals.Goal("s", "", 1.9, goals.between("s", "a", "c")).verdict(rows) is None
    only = goals.between("s", "a", "b", lambda row: row.batch != 2)
    assert goals.Goal("s", "", 2.0, only).verdict(rows).worst.median == 2.0


def test_the_table_of_goals_says_met_missed_and_not_measured():
    rows = [row("a", [1.0]), row("b", [3.0])]
    asked = [
        goals.Goal("s", text, least, goals.between("s", "a", text)) for text, least in [("b", 3), ("b", 4), ("c", 1)]
    ]
    lines = tables.goals(asked, rows).splitlines()[2:]
    assert [line.split(" | ")[-1] for line in lines] == ["met |", "**not met** at 1 of 1 |", "not measured |"]
    assert "| 3.00 (3.00 to 3.00) |" in lines[0]


# The loops.


class Matcher:
    """(1 - t) x0 + t x1, as the stand-in for a peer; with sigma 0 it is CondOT."""

    def __init__(self, sigma):
        assert sigma == 0

    def sample_location_and_conditional_flow(self, x0, x1):
        t = torch.rand(len(x0))
        return t, *self.interpolate(x0, x1, t)

    @staticmethod
    def interpolate(x0, x1, t):
        return (1 - t[:, None]) * x0 + t[:, None] * x1, x1 - x0

    @classmethod
    def sample(cls, t, x_0, x_1):
        x, velocity = cls.interpolate(x_0, x_1, t)
        return SimpleNamespace(t=t, x_t=x, dx_t=velocity)


def standing_in():
    return {
        "torchcfm": SimpleNamespace(
            ConditionalFlowMatcher=Matcher, ExactOptimalTransportConditionalFlowMatcher=Matcher
        ),
        "flow_matching": SimpleNamespace(AffineProbPath=lambda scheduler: Matcher, CondOTScheduler=lambda: None),
        "torchebm": SimpleNamespace(LinearInterpolant=lambda: Matcher),
    }


@pytest.fixture(scope="module")
def blob():
    """Samples of N((3, -1), 0.1²): CondOT's velocity is close to (m - x)/(1 - t)."""
    return torch.tensor([3.0, -1.0]) + 0.1 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))


def test_every_loop_trains_the_same_network_to_the_same_end(blob, monkeypatch, traced):
    """From the same weights, by as many steps, all come as near to the exact field as each other."""
    made = []
    network = loops.Task.network
    monkeypatch.setattr(loops.Task, "network", lambda self: made.append(network(self)) or made[-1])
    task = loops.Task(blob, batch=64, steps=150, warm=50)
    found = training.contestants(standing_in())
    assert {name.partition(",")[0] for name in found} == {"fmkit", "bare loop", *packages.PEERS}
    assert all(loop(task) > 0 for loop in found.values())
    exact = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[[3.0, -1.0]], std=0.1)
    t, z = torch.linspace(0.1, 0.9, 64), torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    x = t[:, None] * torch.tensor([3.0, -1.0]) + (1 - t[:, None]) * z

    def error(net):
        return (net(t, x) - exact(t, x)).square().mean().item()

    with torch.no_grad():
        errors = [error(net) for net in made]
        before = error(network(task))
    assert len(made) == len(found)
    assert max(errors) < before / 4
    assert max(errors) < 2 * min(errors)


def test_the_steps_that_count_are_those_after_the_warm_ones(blob, monkeypatch):
    """A clock that ticks once a step: a hand-written loop and the trainer both see 7 steps."""
    ticks = 0

    def step():
        nonlocal ticks
        ticks += 1

    monkeypatch.setattr(loops.time, "perf_counter", lambda: float(ticks))
    task = loops.Task(blob, batch=8, steps=7, warm=3)
    assert task.take(step) == 7
    assert ticks == 10

    class Counting(fmkit.objectives.VelocityMatching):
        def loss(self, *args, **more):
            step()
            return super().loss(*args, **more)

    trainer = fmkit.Trainer
    monkeypatch.setattr(fmkit, "Trainer", lambda *args, **more: trainer(*args, objective=Counting(), **more))
    assert loops.trainer(task) == 7


def test_seconds_are_those_of_one_step():
    found = list(training.rows({"a": lambda task: 3.0}, repeats=2, steps=6))
    rows = [r for r in found if isinstance(r, Row)]
    assert [r.batch for r in rows] == list(training.BATCHES)
    assert all(r.seconds == (0.5, 0.5) for r in rows)
    assert any(isinstance(r, Note) for r in found) != training.compiles()


def test_the_coupled_loops_pair_by_optimal_transport():
    found = training.coupled(standing_in())
    assert isinstance(found["fmkit, ot"].keywords["coupling"], fmkit.couplings.OptimalTransport)
    assert found["torchcfm, OT-CFM"].keywords["matcher"] == "ExactOptimalTransportConditionalFlowMatcher"


# The command.


def test_sections_are_measured_one_by_one_into_the_same_files(tmp_path, monkeypatch, traced):
    monkeypatch.setattr(packages, "load", standing_in)
    monkeypatch.setattr(training, "BATCHES", (8,))
    monkeypatch.setattr(training, "COUPLED_BATCH", 8)
    monkeypatch.setattr(training, "FIT_STEPS", 2)
    words = ["--here", "--quick", "--out", str(tmp_path), "--section"]
    command.main([*words, "coupled"])
    first = [r for r in results.read(tmp_path / "peers.csv") if r.section == "coupled"]
    command.main([*words, "training"])
    rows, record = results.read(tmp_path / "peers.csv"), json.loads((tmp_path / "peers.json").read_text())
    assert [r for r in rows if r.section == "coupled"] == first
    assert list(record["sections"]) == ["training", "coupled"]
    assert (tmp_path / "peers.md").read_text() == page(rows, record)
    assert record["sections"]["training"]["torch"].startswith(torch.__version__)


def test_the_page_follows_its_rows(tmp_path):
    """A figure of a row that changes is one that changes on the page."""
    rows = [row("fmkit", [1e-3], "training"), row("torchcfm", [2e-3], "training")]
    conditions = {
        "date": "",
        "commit": "",
        "repeats": 1,
        "quick": True,
        "minutes": 1.0,
        "load": [0.0, 9.0],
        "threads": 1,
    }
    conditions |= {
        "threads": 1,
        "machine": "m",
        "torch": "t",
        "versions": {"torchcfm": "1.2.3"},
        "notes": ["The moon is too far."],
    }
    record = {"command": "c", "sections": {"training": conditions}}
    text = page(rows, record)
    assert re.search(r"against torchcfm's loop \| 1.3 \| 2.00 .* met \|", text)
    assert "The moon is too far." in text
    assert "torchcfm 1.2.3" in text
    faster = page([rows[0], rows[1]._replace(seconds=(1.1e-3,))], record)
    assert re.search(r"against torchcfm's loop \| 1.3 \| 1.10 .* \*\*not met\*\*", faster)


def test_without_the_peers_the_command_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "present", lambda: False)
    monkeypatch.setattr(packages, "ENVIRONMENT", tmp_path)
    with pytest.raises(SystemExit, match="--make makes that environment"):
        command.main([])


def test_another_environment_that_is_named_is_taken_even_if_the_peers_are_here(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(packages, "present", lambda: True)
    monkeypatch.setattr(packages, "make", lambda: tmp_path)
    monkeypatch.setattr(packages, "hand_over", lambda python, module, words: taken.append((python, module, words)))
    command.main(["--python", str(tmp_path)])
    command.main(["--make", "--quick"])
    words = (["--python", str(tmp_path)], ["--make", "--quick"])
    assert taken == [(tmp_path, "benchmarks.peers", each) for each in words]


def test_an_environment_with_another_torch_is_refused(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 1.0\n")
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r"has torch 1.0, this environment has .*; they must be one"):
        packages.hand_over(python, "benchmarks.peers", [])
