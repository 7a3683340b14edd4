"""The paper's experiment at tiny size: what a cell holds, what is refused, and figures by another hand."""

import dataclasses
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

import fmkit
from fmkit.arguments import device_of
from fmkit.benches import paper, paper_figures, paper_measures
from fmkit.benches.paper_protocol import METHODS, Protocol, seconds_of
from fmkit.benches.paper_table import FIGURES, HEAD, caption, few_step_lines, lines, page, protocol_of
from fmkit.cli import main
from fmkit.errors import ArgumentError, FmkitError, SavedFileError
from fmkit.fields import UNet
from fmkit.image_evaluation import labelled_images
from fmkit.metrics.extractors import FeatureExtractor

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
TINY = Protocol("digits", 1.0, batch=4, samples=66, nll_images=2, dequantizations=1, noises=2, steps=2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_measures, "BUDGETS", (5, 10))
        patch.setattr(paper_measures, "REFERENCE_NFE", 20)
        patch.setattr(paper_measures, "WAY_STEPS", 6)
        patch.setattr(paper_figures, "BUDGETS", (5, 10))
        patch.setattr(paper, "UNet", lambda shape, preset: UNet(shape, preset, channels=4, channel_mult=(1,)))
        made = paper.Bench(folder / "out", TINY, folder / "cache", classifier_steps=10)
        for method in ("fm-ot", "fm-diffusion"):
            made.cell(method, 0)
        yield made


class Growth(fmkit.fields.VectorField):
    """v = x, whose flow multiplies by e."""

    def forward(self, t, x, cond=None):
        return x


def test_errors_against_the_reference_are_those_of_the_solvers():
    flow = fmkit.Flow(fmkit.sources.Gaussian(), Growth(), event_shape=(1, 2, 2))
    judge = type("Judge", (), {"fid": staticmethod(lambda images: images.square().mean().item())})()
    protocol = Protocol("digits", 1.0, samples=40, noises=30)
    noise = torch.randn(40, 1, 2, 2, generator=fmkit.training.stream(3, "paper-noise"))
    scale = noise[:30].double().square().mean().sqrt().item()
    rows = {(r["solver"], r["nfe"]): r for r in paper_measures.few_steps(flow, judge, protocol, 3)}
    assert sorted(n for s, n in rows if s == "abm3") == [5, 10, 20, 50]
    assert sorted(n for s, n in rows if s == "rk4") == [4, 8, 20, 48]
    for n in (5, 10, 20, 50):
        grown = (1 + 1 / n) ** n
        assert rows["euler", n]["rmse"] == pytest.approx((math.e - grown) * scale, rel=1e-3)
        assert rows["euler", n]["fid"] == pytest.approx((grown * noise).square().mean().item(), rel=1e-4)
    h = 1 / 10
    assert rows["midpoint", 20]["rmse"] == pytest.approx((math.e - (1 + h + h * h / 2) ** 10) * scale, rel=1e-3)


def test_the_methods_are_the_papers():
    said = {name: (m.path, m.objective) for name, m in METHODS.items()}
    assert said == {
        "ddpm": ("vp", "noise"),
        "sm": ("vp", "score"),
        "scoreflow": ("vp", "scoreflow"),
        "fm-diffusion": ("vp", "velocity"),
        "fm-ot": ("condot", "velocity"),
    }


def test_a_cell_is_whole_and_not_run_twice(bench, monkeypatch):
    results = bench.results()
    assert [(r["method"], r["steps"], r["protocol"]["budget"]) for r in results] == [
        ("fm-diffusion", 2, 1.0),
        ("fm-ot", 2, 1.0),
    ]
    for r in results:
        assert r["training_seconds"] > 0
        assert math.isfinite(r["bits"])
        assert r["bits_images"] == 2
        assert [d["step"] for d in r["during"]] == [1, 2]
        assert (r["fid"], r["nfe"]) == (r["during"][-1]["fid"], r["during"][-1]["nfe"])
        assert len(r["few_steps"]) == 8
        assert r["held_out"]["images"] == 66
    tensors, _ = fmkit.saving.read_tensors(bench.folder / "digits_fm-ot_0.safetensors")
    assert tensors["by_nfe"].shape == (3, 8, 1, 8, 8)
    assert tensors["path"].shape == (7, 8, 1, 8, 8)
    monkeypatch.setattr(bench, "_measure", lambda *_: pytest.fail("measured again"))
    assert bench.cell("fm-ot", 0) == results[1]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*/paper.json")), ids=lambda path: path.parent.name)
def test_the_pages_are_what_their_results_say(path):
    results = json.loads(path.read_text())
    drawn = [name for name in FIGURES if (path.parent / f"paper-{name}.png").is_file()]
    assert len(drawn) == len(FIGURES)
    assert path.with_suffix(".md").read_text() == page(results, drawn)


def test_what_a_cell_does_is_told(bench, tmp_path):
    told = []
    made = paper.Bench(tmp_path, TINY, bench.cache, classifier_steps=10, tell=told.append)
    made.cell("fm-ot", 0)
    assert told == [
        "features of the real images",
        "training, 2 steps",
        "FID and NFE after 1 steps",
        "FID and NFE after 2 steps",
        "bits per dimension",
        "FID and error of few steps",
    ]
    made.cell("fm-ot", 0)  # it is there
    assert len(told) == 6


def test_methods_begin_with_the_same_weights(bench):
    first, second = (bench._trainer(m, 5, 2, paper.Looks(set())).field.state_dict() for m in ("sm", "fm-ot"))
    other = bench._trainer("fm-ot", 6, 2, paper.Looks(set())).field.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_a_cell_cut_off_begins_again(bench, tmp_path, monkeypatch):
    cut = paper.Bench(tmp_path, TINY, bench.cache, classifier_steps=10)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(paper_measures, "few_steps", fail)
        with pytest.raises(KeyboardInterrupt):
            cut.cell("fm-ot", 0)
    assert cut.results() == []
    again = cut.cell("fm-ot", 0)
    assert again["fid"] == pytest.approx(bench.cell("fm-ot", 0)["fid"], rel=1e-4)  # every draw follows from the seed


def test_the_budget_becomes_steps(bench, tmp_path, monkeypatch):
    made = paper.Bench(tmp_path, Protocol("digits", 100.0, batch=4))
    monkeypatch.setattr(paper, "CALIBRATION", 7)
    steps = made.steps()
    known = json.loads((tmp_path / "calibration" / "digits.json").read_text())
    assert steps == int(100 / known["step_seconds"]) > 8
    monkeypatch.setattr(made, "_trainer", lambda *_: pytest.fail("calibrated again"))
    assert made.steps() == steps


def test_how_long_measuring_takes_is_foreseen(tmp_path, monkeypatch):
    """10 samples by dopri5 at 4 moments and by 4 solvers at 85 evaluations in all; 6 gradients; 5 references."""
    monkeypatch.setattr(paper_measures, "BUDGETS", (5, 10, 20, 50))  # the fixture's are fewer
    monkeypatch.setattr(paper_measures, "REFERENCE_NFE", 1000)
    protocol = Protocol("digits", 60.0, batch=50, samples=10, nll_images=3, dequantizations=2, noises=5)
    assert paper_measures.evaluations(protocol) == 10 * (4 * 150 + 4 * 85) + 6 * 3 * 150 + 5 * 1000 == 17_100
    made = paper.Bench(tmp_path, protocol)
    (tmp_path / "calibration").mkdir()
    for seconds, said in ((1.5, "; measuring it will take about 3 min"), (0.1, "")):  # 10 ms, or less, an evaluation
        made._write(tmp_path / "calibration" / "digits.json", {"steps": 40, "step_seconds": seconds})
        assert (made.steps(), made._then()) == (40, said)
    assert paper.Bench(tmp_path, dataclasses.replace(protocol, steps=2))._then() == ""


def test_the_table_has_every_method_and_says_what_is_missing(bench):
    results = bench.results()
    rows = {row[0]: row for row in lines(results)}
    assert {m.label for m in METHODS.values()} <= set(rows)
    assert {len(row) for row in rows.values()} == {len(HEAD)}
    assert rows["ScoreFlow"][1] == "not measured"
    assert rows["FM, diffusion path"][2] == f"{results[0]['fid']:.2f}"
    assert few_step_lines(results, "rmse")[1][2:] == tuple(f"{r['few_steps'][0]['rmse']:.3f}" for r in results)
    assert "2 steps, whatever their time" in page(results)
    assert f"Measured with fmkit {fmkit.__version__}, torch {torch.__version__}." in " ".join(page(results).split())
    two = [*results, {**results[0], "seed": 1, "fid": results[0]["fid"] + 2}]
    assert {row[0]: row for row in lines(two)}["FM, diffusion path"][
        2
    ] == f"{results[0]['fid'] + 1:.2f} ± {math.sqrt(2):.2f}"


def test_other_protocols_are_refused(bench):
    other = Protocol("digits", 2.0, steps=2)
    with pytest.raises(SavedFileError, match="choose another folder"):
        paper.Bench(bench.folder, other).cell("fm-ot", 0)
    results = bench.results()
    with pytest.raises(ArgumentError, match="several protocols"):
        protocol_of([results[0], {**results[1], "protocol": {**results[1]["protocol"], "budget": 2.0}}])
    with pytest.raises(ArgumentError, match="no results"):
        protocol_of([])
    old = [{**row, "solver": "ab3"} if row["solver"] == "abm3" else row for row in results[1]["few_steps"]]
    with pytest.raises(ArgumentError, match="several sets of solvers"):
        protocol_of([results[0], {**results[1], "few_steps": old}])


def test_results_of_another_device_are_not_mixed_in_and_old_ones_are_the_processors(bench, tmp_path):
    old = json.loads((bench.folder / "digits_fm-ot_0.json").read_text())
    assert old["protocol"].pop("device") == "cpu"
    (tmp_path / "digits_fm-ot_0.json").write_text(json.dumps(old))
    assert paper.Bench(tmp_path, TINY).cell("fm-ot", 0) == old
    with pytest.raises(SavedFileError, match="choose another folder"):
        paper.Bench(tmp_path, dataclasses.replace(TINY, device="cuda")).cell("fm-ot", 0)
    other = {**old, "protocol": {**old["protocol"], "device": "cuda"}}
    with pytest.raises(ArgumentError, match="several protocols"):
        protocol_of([old, other])
    assert caption([other]) == f"{caption([old])}, on a GPU"


def test_everything_is_done_on_the_protocols_device(bench, monkeypatch):
    """The trainer and the classifier of the features; where there is no GPU, one looks at what is asked."""
    asked = []
    monkeypatch.setattr(paper.measures, "Judge", lambda *arguments: asked.append(arguments[-1]))
    made = paper.Bench(bench.folder, dataclasses.replace(TINY, device="cuda"))
    assert (made.judge, asked) == (None, ["cuda"])
    assert made._trainer("fm-ot", 0, 2, paper.Looks(set())).settings.device == "cuda"


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [device_of(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(ArgumentError, match="finds no GPU"):
        device_of("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device_of(name) for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    with pytest.raises(ArgumentError, match="expected auto, cpu or cuda"):
        device_of("gpu")
    with pytest.raises(ArgumentError, match="device is 'auto'"):
        dataclasses.replace(TINY, device="auto")


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol("digits", 120.0),
        Protocol("{name: fashion-mnist, size: 14}", 90.0, "small", batch=32, samples=70, features="{name: inception}"),
        Protocol("mnist-5k", 0.5, nll_images=3, dequantizations=2, samples=20, noises=20),
    ],
)
def test_the_command_that_a_page_names_is_that_of_its_protocol(protocol, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("fmkit.cli.paper.run_cells", lambda found, *_, **__: asked.append(found) or [])
    words = shlex.split(protocol.command)
    assert words[0] == "fmkit"
    with pytest.raises(SystemExit, match="0"):
        main([*words[1:], "--device", "cpu", "--json", "--out", str(tmp_path)])
    assert asked == [protocol]


class Centre(FeatureExtractor):
    """The four pixels in the middle of 8x8 images as features."""

    identity = "centre"

    def forward(self, images):
        return images[:, 0, 3:5, 3:5].flatten(1)


def test_fid_in_the_features_that_were_asked_for(bench, tmp_path, monkeypatch):
    """The Fréchet distance in them, worked out again from moments and a matrix square root."""
    monkeypatch.setattr(paper, "feature_extractor", lambda spec, split: Centre())
    protocol = dataclasses.replace(TINY, features="centre")
    judge = paper.Bench(tmp_path, protocol, tmp_path).judge
    split = labelled_images("digits")
    a, b = (x[:, 0, 3:5, 3:5].flatten(1).double().numpy() for x in (split.test, split.train.x))
    c, d = (np.cov(x, rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(c @ d).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root)
    assert judge.fid(split.test) == pytest.approx(expected, rel=1e-6)
    assert judge.accuracy is None
    found = {**bench.results()[0], "protocol": dataclasses.asdict(protocol)}
    found["held_out"] = {**found["held_out"], "accuracy": None}
    assert "FID is in the features of centre." in " ".join(page([found]).split())


def test_data_may_be_described(tmp_path):
    made = paper.Bench(tmp_path, dataclasses.replace(TINY, data="{name: digits, labels: true}"))
    assert made.split.event_shape == (1, 8, 8)
    made.steps = lambda: pytest.fail("trained")
    with pytest.raises(pytest.fail.Exception, match="trained"):
        made.cell("fm-ot", 0)
    assert Protocol("{name: fashion-mnist, size: 14}", 1.0).stem == "fashion-mnist-size-14"


@pytest.mark.parametrize("data", ["5", "[digits]", "{size: 14}", "{name: 3}", "null"])
def test_no_data(data, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "paper", "--data", data, "--out", str(tmp_path / "out")])
    assert "expected a name or {name: ..., ...}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("2m", 120), ("1.5h", 5400), ("10", 10)])
def test_budgets(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["0", "0m", "-1m", "", "soon", "2d", "nan"])
def test_no_budgets(text):
    with pytest.raises(ArgumentError, match="budget"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "digitz"], "did you mean 'digits'"),
        (["--data", "moons"], "expected labelled images"),
        (["--method", "fm-to"], "did you mean 'fm-ot'"),
        (["--budget", "0"], "expected a time above 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--device", "gpu"], "expected auto, cpu or cuda"),
        (["--preset", "tinny"], "did you mean 'tiny'"),
        (["--table"], "no folder"),
    ],
)
def test_bad_words(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "paper", "--out", str(tmp_path / "out"), *words])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_files_are_said(monkeypatch):
    from fmkit.data import idx

    monkeypatch.setattr(idx.FashionMNIST.__init__, "__defaults__", ("/nowhere", False, None, False, None))
    with pytest.raises(FmkitError, match="nowhere"):
        labelled_images("fashion-mnist")


def test_the_command_shows_and_writes(bench, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "paper", "--out", str(bench.folder), "--table", "--page", str(tmp_path)])
    assert "FM, OT path" in capsys.readouterr().out
    assert json.loads((tmp_path / "paper.json").read_text()) == bench.results()
    drawn = ("training", "fid", "error", "samples", "paths")
    assert (tmp_path / "paper.md").read_text() == page(bench.results(), drawn)
    for name in drawn:
        assert (tmp_path / f"paper-{name}.png").read_bytes()[:4] == b"\x89PNG"
