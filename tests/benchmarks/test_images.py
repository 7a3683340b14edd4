"""The benchmark of images: arithmetic counted by hand, the script's step, windows, goals on a GPU only, its page.

torchcfm is not installed with the tests: a small stand-in that does the textbook's arithmetic takes its place.
"""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.images import __main__ as command
from benchmarks.images import goals, loops, networks, sections, tables
from benchmarks.images.page import page
from benchmarks.peers import packages, results
from benchmarks.peers.results import Note, Row

PUBLISHED = Path(__file__).parents[2] / "docs" / "benchmarks"
CPU = torch.device("cpu")


class Small(nn.Module):
    """Stands in for torchcfm's UNet."""

    def __init__(self, dim, num_channels, dropout, **sizes):
        super().__init__()
        self.sizes, self.layer = sizes, nn.Conv2d(dim[0], dim[0], 3, padding=1)

    def forward(self, t, x):
        return self.layer(x)


class Matching:
    def __init__(self, sigma):
        assert sigma == 0.0

    def sample_location_and_conditional_flow(self, x0, x1):
        t = torch.rand(len(x1))
        at = t[:, None, None, None]
        return t, (1 - at) * x0 + at * x1, x1 - x0


PEERS = {"torchcfm": SimpleNamespace(UNetModelWrapper=Small, ConditionalFlowMatcher=Matching)}


def row(contestant, seconds, case="unet 128", batch=10, figure=2.0, section="training"):
    return Row(section, contestant, case, 3072, batch, None, tuple(seconds), figure)


def conditions(device="cpu", **more):
    made = {"date": "", "commit": "", "repeats": 1, "quick": False, "minutes": 1.0, "load": [0.0, 0.0], "threads": 1}
    return made | {"machine": "m", "device": device, "torch": "t", "versions": {}, "notes": []} | more


# What networks cost.


def test_the_operations_of_a_transformer_by_hand():
    """Two for each weight of a matrix and token, and attention's two products: 4 tokens² width in each block."""
    tokens, d, depth, hidden, pixels = 256, 64, 2, 256, 12
    found = networks.cost(lambda: networks.network("dit tiny"))
    blocks = depth * (tokens * (4 * d * d + 2 * d * hidden) * 2 + 4 * tokens**2 * d + 2 * 6 * d * d)
    embedding = networks.network("dit tiny").time.first.weight.numel() + d * d
    rest = 2 * tokens * 2 * pixels * d + 2 * (embedding + 2 * d * d)
    assert found.forward == blocks + rest
    assert 2.9 * found.forward < found.step < 3 * found.forward  # nobody asks for the gradient of the image
    assert found.parameters == sum(p.numel() for p in networks.network("dit tiny").parameters())


def test_the_published_sizes():
    """DiT-XL/2 on 256 tokens has 118.6 G multiplications (Peebles and Xie, Table 4), and as many additions."""
    assert networks.cost(lambda: networks.network("dit XL")).forward == pytest.approx(2 * 118.6e9, rel=2e-3)
    unet = networks.cost(lambda: networks.network("unet 128"))
    assert unet.parameters == pytest.approx(35.7e6, rel=2e-3)  # as torchcfm's script prints, by 1024²: 34.09 M


# The loops.


def test_windows_are_the_times_between_their_ends(monkeypatch):
    times = iter([1.0, 3.0, 9.0])
    monkeypatch.setattr(loops, "now", lambda device: next(times))
    steps = []
    assert loops.Task("", 1, CPU, 2, 2).take(lambda: steps.append(1), 2, 3) == (1.0, 3.0)
    assert len(steps) == 3 + 4


def test_the_trainers_windows_follow_on_its_warm_steps(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(loops, "now", lambda device: float(next(clock)))
    task = loops.Task("unet 32", 2, CPU, 2, 3, warm=1)
    monkeypatch.setattr(loops, "network", lambda name: Small(networks.SHAPE, 1, 0.1))
    assert loops.trainer(task, {}) == (0.5, 0.5, 0.5)
    assert next(clock) == 4


def test_the_scripts_step_averages_clips_and_warms_up(monkeypatch):
    """After one step at a learning rate of 0 weights and average are the first; after another the average has moved."""
    made, copies, deep = [], [], copy.deepcopy
    monkeypatch.setattr(loops, "torchcfms", lambda name, peer: made.append(Small(networks.SHAPE, 1, 0.1)) or made[-1])
    monkeypatch.setattr(loops.copy, "deepcopy", lambda module: copies.append(deep(module)) or copies[-1])
    monkeypatch.setattr(loops, "LR", 0.1)
    monkeypatch.setattr(loops, "WARMUP", 2)
    norms, clip = [], nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, most: norms.append(most) or clip(p, most))
    for steps, rate in ((0, 0.0), (1, 0.05)):  # a warm step, and those that count
        assert len(loops.torchcfm(loops.Task("unet 32", 2, CPU, 1, steps, warm=1), PEERS["torchcfm"])) == steps
        gap = (copies[-1].layer.weight - made[-1].layer.weight).abs().max().item()
        assert gap == pytest.approx(0.9999 * rate, rel=0.02, abs=1e-6)  # Adam's second step is as long as the rate
    assert norms == [1.0] * 3


def test_what_cannot_be_compiled_or_does_not_fit_is_no_figure():
    def gave_up(task):
        import warnings

        warnings.warn("the step cannot be compiled (no compiler) and is taken as it is", stacklevel=1)
        return (1.0,)

    def too_large(task):
        raise torch.cuda.OutOfMemoryError("out of memory")

    task = loops.Task("dit L", 7, CPU, 1, 1)
    for loop, said in ((gave_up, "no compiler"), (too_large, "at batch 7 does not fit")):
        (note,) = sections.measured("training", "fmkit", task, loop, 1.0)
        assert isinstance(note, Note)
        assert said in note.text
    assert list(sections.measured("training", "fmkit", task, lambda task: (1.0,), 5.0)) == [
        row("fmkit", [1.0], "dit L", 7, 5.0)
    ]


# Goals.


def test_the_share_of_the_matrix_rate():
    """10 images of 2 operations in 0.5 s are 40 a second, of 100 that a product of 50 operations in 0.5 s makes."""
    product = Row("training", tables.MATMUL, "bfloat16", 3, None, None, (0.5, 0.5), 50.0)
    assert tables.rate([product, row("fmkit", [1.0])]) == 100.0
    assert tables.utilisation(row("fmkit", [0.5]), 100.0).median == pytest.approx(0.4)


def test_goals_are_judged_on_a_gpu_only_and_by_the_fastest():
    rows = [
        Row("training", tables.MATMUL, "bfloat16", 3, None, None, (0.5,), 50.0),
        row("fmkit", [4.0]),
        row("fmkit, compiled", [2.0]),
        row("torchcfm", [5.0]),
        row("fmkit", [0.6], "dit L"),
    ]
    asked = goals.goals(rows, {"sections": {"training": conditions("H")}}).splitlines()[2:]
    assert "| 2 | 2.50 (2.50 to 2.50) | fmkit, compiled | met |" in asked[0]
    assert "| 0.4 | 0.33 (0.33 to 0.33) | fmkit | **not met** |" in asked[1]
    for record in ({"sections": {"training": conditions()}}, {"sections": {}}):
        assert goals.goals(rows, record).count("not measured here: no GPU") == 2


# The command and its page.


def test_a_page_says_where_it_was_not_alone():
    rows = [row("torchcfm", [1.0], section="networks", figure=1.0)]
    for device, load, said in (("cpu", 16.0, True), ("cpu", 1.5, False), ("H", 16.0, False)):
        record = {"command": "c", "sections": {"networks": conditions(device, load=[0.0, load])}}
        assert ("a load of up to 16: no speed below is worth anything" in " ".join(page(rows, record).split())) is said


def test_quick_runs_everything_and_writes_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "load", lambda: PEERS)
    command.main(["--here", "--quick", "--out", str(tmp_path)])
    rows, record = results.read(tmp_path / "images.csv"), json.loads((tmp_path / "images.json").read_text())
    assert (tmp_path / "images.md").read_text() == page(rows, record)
    found = {(r.section, r.case, r.contestant) for r in rows}
    for section in ("networks", "training", "sampling"):
        assert {
            (section, "unet 32", "fmkit"),
            (section, "unet 32", "torchcfm"),
            (section, "dit tiny", "fmkit"),
        } <= found
    assert all(len(r.seconds) == (0 if r.section == "networks" else 2) for r in rows)
    assert all(r.figure > 0 for r in rows)


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path):
    def run(peers, repeats, quick):
        yield Row("networks", "fmkit", "dit S", 1, None, 1.0, (), 2.0)
        raise KeyboardInterrupt

    section = dataclasses.replace(sections.SECTIONS[0], run=run)
    benchmark = dataclasses.replace(command.BENCHMARK, sections=(section,))
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(tmp_path, ["networks"], 1, False, {})
    (kept,) = results.read(tmp_path / "images.csv")
    benchmark.present(tmp_path)
    assert (kept.case, kept.figure) == ("dit S", 2.0)
    assert "- Stopped by hand: the rest of the section is not in this record." in (tmp_path / "images.md").read_text()


def test_the_settings_reach_what_they_name(monkeypatch):
    """Of every contestant on a GPU: the network's layout and checkpointing, the trainer's precision and compiling."""
    taken = []
    monkeypatch.setattr(sections, "here", lambda quick: (CPU, sections.PLANS["cuda"]))
    monkeypatch.setattr(sections, "cost", lambda make: networks.Cost(1, 1.0, 3.0))
    monkeypatch.setattr(loops, "products", lambda *_: (1.0,))
    for name in ("trainer", "sampler"):
        monkeypatch.setattr(
            loops, name, lambda task, options, **more: taken.append((task.network, options | more)) or (1.0,)
        )
    rows = [*sections.training({}, 1, False), *sections.sampling({}, 1, False)]
    for made, (name, options) in zip((r for r in rows if r.contestant != tables.MATMUL), taken, strict=True):
        words = made.contestant.split(", ")[1:]
        expected = {"precision": "bfloat16"} if "bfloat16" in words else {}
        expected |= {"channels_last": True} if "channels_last" in words else {}
        expected |= {"checkpointing": True} if "checkpointing" in words else {}
        expected |= {"compile": True} if "compiled" in words else {"compile": "graphs"} if "graphs" in words else {}
        assert (made.case, options) == (name, expected)
        assert made.figure == (3.0 if made.section == "training" else 50.0)
    assert {"unet 128", "dit S", "dit L"} == {name for name, _ in taken}
    assert all(options["precision"] == "bfloat16" for name, options in taken if name != "unet 128")


def test_the_page_is_what_its_rows_say():
    rows, record = results.read(PUBLISHED / "images.csv"), json.loads((PUBLISHED / "images.json").read_text())
    assert (PUBLISHED / "images.md").read_text() == page(rows, record), "run python -m benchmarks.images --page"
    order = [section.name for section in sections.SECTIONS]
    assert list(record["sections"]) == [name for name in order if name in record["sections"]]
    assert not any(run["quick"] for run in record["sections"].values())
    of = {(r.contestant, r.case): r for r in rows if r.section == "networks"}
    ours, theirs = (of[who, "unet 128"] for who in ("fmkit", "torchcfm"))
    assert ours.setting == pytest.approx(theirs.setting, rel=1e-3)  # the same network
    assert ours.figure == pytest.approx(theirs.figure, rel=1e-3)
