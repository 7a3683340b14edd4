"""Images drawn by flows of which it is known how good they are: the data itself, and one image for each label."""

import json

import pytest
import torch

import fmkit
from fmkit import runs
from fmkit.data import Digits
from fmkit.errors import ArgumentError
from fmkit.fields import VectorField
from fmkit.image_evaluation import evaluate_images
from fmkit.metrics.features import ClassifierSettings, classifier
from fmkit.solvers import Euler
from tests.commands import run

SPLIT = Digits(flat=False, labels=True).load(0)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return classifier(SPLIT, ClassifierSettings(steps=150), cache=tmp_path_factory.mktemp("cache"))


class Still(VectorField):
    """A flow that leaves its source where it is."""

    def forward(self, t, x, cond=None):
        return torch.zeros_like(x)


class Shown(VectorField):
    """Of each label one image, which one Euler step reaches."""

    def __init__(self, images, shift=0):
        super().__init__()
        self.images, self.shift = images, shift

    def forward(self, t, x, cond=None):
        return self.images[(cond + self.shift) % len(self.images)] - x


def copies(split, images, shape=(1, 8, 8)):
    """A flow whose samples are these images."""
    return fmkit.Flow(fmkit.sources.Empirical(images.reshape(-1, *shape)), Still(), Euler(1), shape)


def test_the_data_itself_is_as_good_as_held_out_images(judge, tmp_path):
    real = SPLIT.train.x.float()
    found = evaluate_images(copies(SPLIT, real), SPLIT, samples=700, judge=judge, cache=tmp_path)
    assert (found["images"], found["images_held_out"], found["nfe"]) == (700, 360, 1.0)
    assert 0 <= found["fid"] < found["fid_held_out"]
    assert found["precision"] > 0.99
    assert found["accuracy"] == judge.accuracy
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    worse = evaluate_images(copies(SPLIT, blurred), SPLIT, samples=700, judge=judge, cache=tmp_path)
    assert worse["fid"] > 20 * found["fid"]
    assert worse["kid"] > found["kid"]
    assert {k: v for k, v in worse.items() if "held_out" in k} == {k: v for k, v in found.items() if "held_out" in k}


def test_flat_samples_are_the_same_images(judge, tmp_path):
    flat = Digits(labels=True).load(0)
    real = SPLIT.train.x.float()
    as_images = evaluate_images(copies(SPLIT, real), SPLIT, samples=300, judge=judge, cache=tmp_path)
    as_rows = evaluate_images(copies(flat, real, (64,)), flat, SPLIT, samples=300, judge=judge, cache=tmp_path)
    same = {k for k in as_images if "seconds" not in k}
    assert {k: as_rows[k] for k in same} == {k: as_images[k] for k in same}


def test_samples_are_recognised_as_the_label_that_they_were_asked_for(judge, tmp_path):
    known = torch.stack([SPLIT.train.x[SPLIT.train.cond == k][:20].float() for k in range(10)])  # (10, 20, 1, 8, 8)
    right = judge.predict(known.flatten(0, 1)).view(10, 20) == torch.arange(10)[:, None]
    best = known[torch.arange(10), right.int().argmax(1)]
    share = torch.where(right.any(1), 1.0, 0.0)
    cond = fmkit.evaluation.conditions(SPLIT, 600, 3)
    for shift, wanted in ((0, share[cond].mean().item()), (1, 0.0)):
        flow = fmkit.Flow(fmkit.sources.Gaussian(), Shown(best, shift), Euler(1), (1, 8, 8))
        found = evaluate_images(flow, SPLIT, samples=600, seed=3, judge=judge, cache=tmp_path)
        assert found["recognised"] == pytest.approx(wanted, abs=0.02)


def test_what_cannot_be_looked_at_is_refused(judge, tmp_path):
    flow = copies(SPLIT, SPLIT.train.x.float())
    with pytest.raises(ArgumentError, match=r"samples have shape \(1, 8, 8\) and images \(64,\), expected"):
        evaluate_images(flow, SPLIT, Digits(labels=True).load(0), judge=judge, cache=tmp_path)
    for wrong in ({"samples": 3}, {"samples": 2.5}, {"seed": -1}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            evaluate_images(flow, SPLIT, judge=judge, cache=tmp_path, **wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs") / "digits"
    words = ["trainer.steps=2", "trainer.batch_size=8", "solver={name: euler, steps: 1}", "field.channels=8"]
    assert run("train", "digits-classes", *words, "--out", made, "-q") == 0
    return made


def test_the_report_of_a_training_is_short_and_says_so(folder, capsys):
    figures = json.loads((folder / runs.METRICS).read_text())
    assert (figures["samples"], figures["held_out"]) == (200, 64)
    assert run("train", folder, "trainer.steps=3") == 0
    assert f"scoring 64 held-out samples; of all: fmkit evaluate {folder}" in capsys.readouterr().err


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "fmkit.image_evaluation.classifier",
        lambda split, **options: classifier(split, ClassifierSettings(steps=10), **options),
    )
    assert run("evaluate", folder, "--images", 80, "--guidance", 2, "--steps", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "images.json").read_text())
    assert (found["images"], found["nfe"], found["guidance"], found["steps"]) == (80, 3.0, "2", 3)
    assert 0 <= found["recognised"] <= 1
    assert run("evaluate", folder, "--images", 80) == 0
    shown = capsys.readouterr().out
    assert "recognised as their label" in shown
    assert "360 held-out" not in shown  # as many as there are samples: 80
    assert "guidance" not in json.loads((folder / "images.json").read_text())


def test_bad_words_are_said(folder, tmp_path, capsys):
    assert run("evaluate", folder, "--guidance", 2) == 2
    assert "--guidance: it is an option of --images" in capsys.readouterr().err
    assert run("train", "moons", "trainer.steps=1", "--out", tmp_path / "moons", "-q") == 0
    capsys.readouterr()
    assert run("evaluate", tmp_path / "moons", "--images", 80) == 2
    assert "the classifier needs labelled images" in capsys.readouterr().err
    assert not (tmp_path / "moons" / runs.METRICS).with_name("images.json").exists()
