"""Super-resolution: what the data are, and figures of flows of which it is known how well they restore."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

import fmkit
from fmkit.cli import main
from fmkit.data import Digits, Moons, SuperResolution
from fmkit.data.base import DataSet, Split
from fmkit.data.images import image_split
from fmkit.data.items import Pictures
from fmkit.data.super_resolution import grey_levels_of
from fmkit.errors import ArgumentError
from fmkit.fields import VectorField
from fmkit.metrics import bicubic
from fmkit.restoration import evaluate_restoration
from fmkit.solvers import Euler

SPLIT = SuperResolution(Digits(flat=False), 2).load(0)


class Large(DataSet):
    """Smooth images of 16x16 pixels, large enough for SSIM."""

    def __init__(self, flip: bool = False, channels: int = 1) -> None:
        super().__init__()
        self.flip, self.channels = flip, channels

    def load(self, seed: int = 0) -> Split:
        noise = torch.randn(60, self.channels, 20, 20, generator=torch.Generator().manual_seed(seed))
        smooth = F.avg_pool2d(noise, 5, 1)
        return image_split(Pictures((128 + 200 * smooth).clamp(0, 255).byte()), flip=self.flip)


@pytest.mark.parametrize(("data", "factor"), [(Digits(flat=False), 2), (Digits(flat=False), 4), (Large(channels=3), 8)])
def test_a_condition_is_the_mean_of_boxes(data, factor):
    split, plain = SuperResolution(data, factor).load(0), data.load(0)
    assert torch.equal(split.test, plain.test)
    assert torch.equal(split.train.x, plain.train.x)
    assert split.levels == plain.levels
    for images, cond in ((split.train.x, split.train.cond), (split.test, split.test_cond)):
        n, c, h, w = images.shape
        boxes = images.double().view(n, c, h // factor, factor, w // factor, factor).mean((3, 5))
        assert cond.abs().max() <= 1
        torch.testing.assert_close(grey_levels_of(cond, split.levels).double(), boxes, rtol=0, atol=2e-5 * split.levels)


@pytest.mark.parametrize(
    ("data", "factor", "said"),
    [
        (Digits(), 2, r"Digits has events of shape \(64,\), expected whole grey levels"),
        (Moons(), 2, "Moons has events of shape"),
        (Digits(flat=False), 3, "images have 8x8 pixels, which factor 3 does not divide"),
        (Large(flip=True), 2, "Large is flipped while training"),
    ],
)
def test_data_that_do_not_suit_are_refused(data, factor, said):
    with pytest.raises(ArgumentError, match=said):
        SuperResolution(data, factor).load(0)


@pytest.mark.parametrize("factor", [1, 0, 1.5, "two"])
def test_a_wrong_factor_is_refused(factor):
    with pytest.raises(ArgumentError, match="factor"):
        SuperResolution(Digits(flat=False), factor)


class Answer(VectorField):
    """One Euler step from anywhere goes to what a function makes of the condition."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, t, x, cond=None):
        return self.of(cond) - x


def flow_of(split, of):
    return fmkit.Flow(fmkit.sources.Gaussian(), Answer(of), Euler(1), split.event_shape)


def test_what_interpolates_has_the_figures_of_interpolation():
    split = SuperResolution(Large(), 4).load(0)

    def interpolated(cond):  # what is rounded down as a saved picture is, half a level up
        return bicubic(grey_levels_of(cond, 256), 4) + 0.5

    found = evaluate_restoration(flow_of(split, interpolated), split, samples=50)
    assert (found["images"], found["factor"], found["nfe"]) == (12, 4, 1.0)
    for key, within in {"psnr": 0.05, "ssim": 0.01, "consistency": 0.3}.items():
        assert found[key] == pytest.approx(found[f"{key}_bicubic"], abs=within)
        assert 0 < found[f"{key}_standard_error"] < found[key]


def test_the_truth_and_what_is_off_by_a_known_amount():
    split = SuperResolution(Large(), 2).load(0)
    truths = {tuple(c.flatten().tolist()): x for c, x in zip(split.test_cond, split.test, strict=True)}

    def off(by):
        return lambda cond: torch.stack([truths[tuple(c.flatten().tolist())].float() + by for c in cond])

    exact = evaluate_restoration(flow_of(split, off(0.5)), split)
    assert exact["psnr"] == math.inf
    assert exact["ssim"] == pytest.approx(1)
    assert exact["consistency"] < 1e-4
    inside = split.test.amin((1, 2, 3)) >= 8
    assert inside.all()  # or cutting at 0 would make the difference another one
    moved = evaluate_restoration(flow_of(split, off(-6.5)), split)
    assert moved["psnr"] == pytest.approx(20 * math.log10(255 / 7), abs=1e-4)
    assert moved["consistency"] == pytest.approx(7, abs=1e-4)


def test_digits_are_too_small_for_ssim():
    found = evaluate_restoration(
        flow_of(SPLIT, lambda c: F.interpolate(8 * (c + 1), scale_factor=2)), SPLIT, samples=30
    )
    assert "ssim" not in found
    assert found["consistency"] < 1  # what is constant in each box shrinks to what was given, but for rounding


def test_what_is_not_super_resolution_is_refused():
    plain = Digits(flat=False, labels=True).load(0)
    with pytest.raises(ArgumentError, match="the data are no images with low resolutions"):
        evaluate_restoration(flow_of(SPLIT, lambda c: c), plain)
    for wrong in ({"samples": 1}, {"seed": -1}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            evaluate_restoration(flow_of(SPLIT, lambda c: c), SPLIT, **wrong)


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(w) for w in words])
    return left.value.code


@pytest.mark.filterwarnings("ignore:log-densities by Euler")  # a regression's is no density to speak of
@pytest.mark.parametrize("recipe", ["super-resolution", "super-resolution-regression"])
def test_the_recipes_and_the_command(recipe, tmp_path, capsys):
    data = "data={name: super-resolution, data: {name: digits, flat: false}, factor: 2}"
    words = ["trainer.steps=2", "trainer.batch_size=8", "field.channels=8", "trainer.warmup=1"]
    words += [] if "regression" in recipe else ["solver={name: euler, steps: 2}"]
    assert run("train", recipe, data, *words, "--out", tmp_path / "run", "-q") == 0
    capsys.readouterr()
    assert run("evaluate", tmp_path / "run", "--restored", 40, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "run" / "restored.json").read_text())
    assert found["nfe"] == (1.0 if "regression" in recipe else 2.0)
    assert run("evaluate", tmp_path / "run", "--restored", 40) == 0
    assert "PSNR" in capsys.readouterr().out


def test_the_regression_learns_the_mean_of_all_images_that_fit():
    """Two images for one condition: the answer is their mean, and not one of them."""
    x = torch.zeros(200, 1, 4, 4)
    x[::2, :, :, ::2] = 8.0
    x[1::2, :, :, 1::2] = 8.0
    cond = torch.full((200, 1, 2, 2), 0.0)
    field = fmkit.fields.UNet((1, 4, 4), preset="tiny", channels=8, cond_channels=1)
    trainer = fmkit.Trainer(
        fmkit.paths.CondOT(),
        field,
        fmkit.objectives.DataPrediction(time=fmkit.objectives.LogitNormal(-40.0, 1e-3)),
        solver=Euler(1),
        settings=fmkit.Settings(steps=250, batch_size=32, lr=3e-3, ema=0.9, decay="linear", loss_floor=False),
        callbacks=[],
    )
    flow = trainer.fit(fmkit.data.Data(x, cond, transform=fmkit.transforms.Affine(4.0, 4.0)))
    torch.testing.assert_close(flow.sample(20, cond=cond[:20]), torch.full((20, 1, 4, 4), 4.0), rtol=0, atol=0.8)
