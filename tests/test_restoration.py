"""Super-resolution and degraded images: what the data are, and figures of flows of known worth at restoring them."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fmkit
from fmkit.data import Degraded, Digits, Moons, SuperResolution
from fmkit.data.base import DataSet, Split
from fmkit.data.images import image_split
from fmkit.data.items import Pictures
from fmkit.data.super_resolution import grey_levels_of
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import VectorField
from fmkit.metrics import bicubic
from fmkit.metrics.features import ClassifierSettings, classifier
from fmkit.restoration import evaluate_restoration
from fmkit.solvers import Euler
from tests.commands import run

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
    with pytest.raises(ArgumentError, match="the data are no images with what is left of them"):
        evaluate_restoration(flow_of(SPLIT, lambda c: c), plain)
    for wrong in ({"samples": 1}, {"seed": -1}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            evaluate_restoration(flow_of(SPLIT, lambda c: c), SPLIT, **wrong)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A classifier of a few steps, in a cache of its own."""
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path / "cache"))
    few = ClassifierSettings(steps=10)
    monkeypatch.setattr("fmkit.restoration.classifier", lambda split, **options: classifier(split, few, **options))


RESTORE = {
    "super-resolution": "{name: super-resolution, data: {name: digits, flat: false}, factor: 2}",
    "inpainting": "{name: degraded, data: {name: digits, flat: false}, hidden: 0.5}",
}


@pytest.mark.filterwarnings("ignore:log-densities by Euler")  # a regression's is no density to speak of
@pytest.mark.parametrize("recipe", [f"{name}{end}" for name in RESTORE for end in ("", "-regression")])
def test_the_recipes_and_the_command(recipe, quick, tmp_path, capsys):
    data, beside = (RESTORE[recipe.removesuffix("-regression")], "given" if "inpainting" in recipe else "bicubic")
    words = [
        "trainer.steps=2",
        "trainer.batch_size=8",
        "field.channels=8",
        "field.channel_mult=[1]",
        "trainer.warmup=1",
    ]
    words += [] if "regression" in recipe else ["solver={name: euler, steps: 2}"]
    assert run("train", recipe, f"data={data}", *words, "--out", tmp_path / "run", "-q") == 0
    capsys.readouterr()
    assert run("evaluate", tmp_path / "run", "--restored", 80, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "run" / "restored.json").read_text())
    assert found["nfe"] == (1.0 if "regression" in recipe else 2.0)
    assert min(found["fid"], found[f"fid_{beside}"], found["fid_held_out"]) > 0
    assert (tmp_path / "run" / "restored.png").read_bytes()[:4] == b"\x89PNG"
    assert run("evaluate", tmp_path / "run", "--restored", 80) == 0
    shown = capsys.readouterr().out
    assert "PSNR" in shown
    assert beside in shown
    assert run("report", tmp_path / "run") == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Restored images" in page
    assert f"<td>fid</td><td>{found['fid']:.5g}</td>" in page


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


def naive(image, hidden, blur):
    """The degradation of one image (C, H, W), pixel by pixel."""
    out = image.clone()
    c, h, w = image.shape
    half = blur // 2
    for k in range(c):
        for i in range(h):
            for j in range(w):
                box = [
                    image[k, min(max(i + a, 0), h - 1), min(max(j + b, 0), w - 1)]
                    for a in range(-half, half + 1)
                    for b in range(-half, half + 1)
                ]
                out[k, i, j] = sum(box) / len(box)
    out[:, h - hidden :] = 127.5
    return out


@pytest.mark.parametrize(("hidden", "rows", "blur"), [(0.5, 8, 1), (0.0, 0, 3), (0.25, 4, 5)])
def test_a_degraded_image_in_the_models_units(hidden, rows, blur):
    plain, split = Large(channels=3).load(0), Degraded(Large(channels=3), hidden, blur).load(0)
    assert torch.equal(split.test, plain.test)
    assert torch.equal(split.train.x, plain.train.x)
    assert split.levels == plain.levels
    for images, cond in ((split.train.x, split.train.cond), (split.test, split.test_cond)):
        assert cond.shape == images.shape
        want = torch.stack([naive(x, rows, blur) for x in images[:3].double()])
        torch.testing.assert_close(128 * (cond[:3].double() + 1) - 0.5, want, rtol=0, atol=1e-3)
        torch.testing.assert_close(split.degrade(images[:3]).double(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "degrades nothing"),
        ({"hidden": 1.0}, "hidden is 1.0"),
        ({"hidden": -0.1}, "hidden is -0.1"),
        ({"hidden": math.nan}, "hidden"),
        ({"blur": 4}, "blur is 4, expected an odd number"),
        ({"blur": 0}, "blur"),
    ],
)
def test_a_degradation_that_is_none_is_refused(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        Degraded(Digits(flat=False), **arguments)


@pytest.mark.parametrize(
    ("data", "arguments", "said"),
    [
        (Digits(), {"hidden": 0.5}, r"Digits has events of shape \(64,\), expected whole grey levels"),
        (Moons(), {"hidden": 0.5}, "Moons has events of shape"),
        (Digits(flat=False), {"blur": 9}, "blur is 9, a box that is larger than images of 8x8 pixels"),
        (Digits(flat=False), {"hidden": 0.01}, "hidden is 0.01, which is no row of 8"),
        (Large(flip=True), {"blur": 3}, "Large is flipped while training"),
    ],
)
def test_data_that_cannot_be_degraded_are_refused(data, arguments, said):
    with pytest.raises(ArgumentError, match=said):
        Degraded(data, **arguments).load(0)


class Zero(VectorField):
    """A flow that leaves its start where it is."""

    def forward(self, t, x, cond=None):
        return torch.zeros_like(x)


def test_a_flow_from_the_condition_that_does_nothing_gives_what_was_given():
    split = Degraded(Large(), hidden=0.5, blur=3).load(0)
    flow = fmkit.Flow(fmkit.sources.Conditioned(0.0), Zero(), Euler(1), split.event_shape, split.train.transform)
    found = evaluate_restoration(flow, split, samples=12)
    for key, within in {"psnr": 0.05, "ssim": 0.01}.items():
        assert found[key] == pytest.approx(found[f"{key}_given"], abs=within)
    truth = split.degrade(split.test)
    exact = 20 * torch.log10(255 / (truth - split.test).double().square().flatten(1).mean(1).sqrt())
    assert found["psnr_given"] == pytest.approx(exact.mean().item(), rel=1e-6)
    noisy = fmkit.Flow(fmkit.sources.Conditioned(0.5), Zero(), Euler(1), split.event_shape, split.train.transform)
    assert evaluate_restoration(noisy, split)["psnr"] < found["psnr"] - 1


def test_fid_of_restored_images_is_beside_that_of_what_was_given_and_of_the_true_ones(tmp_path):
    labelled = Digits(flat=False, labels=True).load(0)
    judge = classifier(labelled, ClassifierSettings(steps=150), cache=tmp_path)
    split = Degraded(Digits(flat=False), hidden=0.5).load(0)
    flow = fmkit.Flow(fmkit.sources.Conditioned(0.0), Zero(), Euler(1), split.event_shape, split.train.transform)
    found = evaluate_restoration(flow, split, labelled, samples=360, judge=judge)
    assert found["fid"] == pytest.approx(found["fid_given"], rel=0.05)
    assert found["fid_given"] > 10 * found["fid_held_out"] > 0
    assert "fid" not in evaluate_restoration(flow, split, samples=20)


@pytest.mark.parametrize("coupling", [None, fmkit.couplings.Paired()])
def test_each_image_is_trained_from_its_own_condition(coupling):
    split = Degraded(Digits(flat=False), hidden=0.5).load(0)
    trainer = fmkit.Trainer(
        fmkit.paths.CondOT(),
        fmkit.fields.UNet(split.event_shape, preset="tiny", channels=8, cond_channels=1),
        source=fmkit.sources.Conditioned(0.5),
        coupling=coupling,
        settings=fmkit.Settings(steps=1, batch_size=64, loss_floor=False),
        callbacks=[],
    )
    rows = {tuple(x.flatten().tolist()): c for x, c in zip(split.train.x, split.train.cond, strict=True)}
    noise = []
    for (x0, x1, cond), _ in zip(trainer.unpaired(split.train)[1], range(4), strict=False):
        images = split.train.transform.inverse(x1).floor().clamp(0, 16)
        for image, given in zip(images, cond, strict=True):
            torch.testing.assert_close(given, rows[tuple(image.flatten().tolist())])
        noise.append(x0 - cond)
    assert torch.cat(noise).std().item() == pytest.approx(0.5, rel=0.03)
    assert not torch.equal(noise[0], noise[1])
    flow = trainer.fit(split.train)
    cond = split.test_cond[:5]
    x = flow.sample(5, cond=cond, solver=Euler(1))  # one step from zero weights is next to nothing
    torch.testing.assert_close(split.train.transform(x), cond, rtol=0, atol=3.0)
    with pytest.raises(ArgumentError, match="samples begin at their condition, and there is none"):
        flow.sample(5)
    with pytest.raises(ArgumentError, match="5 conditions for 6 samples"):
        flow.sample(6, cond=cond)
    with pytest.raises(ArgumentError, match=r"samples begin at their condition, and it is .*\(5, 1, 4, 4\)"):
        flow.sample(5, cond=cond[..., :4, :4])


def test_a_coupling_that_tears_pairs_apart_is_refused():
    with pytest.raises(CombinationError, match="OptimalTransport gives x0 another partner"):
        fmkit.Trainer(
            fmkit.paths.CondOT(),
            fmkit.fields.MLP(2, cond_dim=2),
            source=fmkit.sources.Conditioned(0.5),
            coupling=fmkit.couplings.OptimalTransport(),
        )


def test_given_conditions_are_restored_by_the_command(tmp_path, capsys):
    words = [
        "trainer.steps=2",
        "trainer.batch_size=8",
        "field.channels=8",
        "field.channel_mult=[1]",
        "trainer.warmup=1",
    ]
    words += ["solver={name: euler, steps: 2}", "source.std=0.0"]
    assert run("train", "inpainting", f"data={RESTORE['inpainting']}", *words, "--out", tmp_path / "run", "-q") == 0
    split, flow = Degraded(Digits(flat=False), hidden=0.5).load(0), fmkit.Flow.load(tmp_path / "run/flow.safetensors")
    file, out = tmp_path / "cond.npy", tmp_path / "out.npy"
    np.save(file, split.test_cond[:7].numpy())
    assert run("sample", tmp_path / "run", "--conditions", file, "-o", out) == 0
    want = flow.transport(split.test_cond[:7], 0.0, 1.0, cond=split.test_cond[:7])
    torch.testing.assert_close(torch.from_numpy(np.load(out)), want)
    for words, said in {
        ("-n", 3): "holds 7 conditions for 3 samples",
        ("--label", 3): "a label is a condition too",
    }.items():
        assert run("sample", tmp_path / "run", "--conditions", file, *words, "-o", out) == 2
        assert said in capsys.readouterr().err
    bad = {
        "shape": (np.zeros((2, 1, 4, 4), np.float32), "samples begin at their condition"),
        "text": (np.array(["a"]), "expected numbers"),
        "one": (np.array(1.0), "expected numbers, a row for each sample"),
        "none": (np.zeros((0, 1, 8, 8)), "expected numbers, a row for each sample"),
        "objects": (np.array([{}], dtype=object), "is no .npy file of numbers"),
    }
    for name, (array, said) in bad.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        assert run("sample", tmp_path / "run", "--conditions", tmp_path / f"{name}.npy", "-o", out) == 2
        assert said in capsys.readouterr().err
    assert run("sample", tmp_path / "run", "--conditions", tmp_path / "missing.npy", "-o", out) == 2
    (tmp_path / "junk.npy").write_text("no array")
    assert run("sample", tmp_path / "run", "--conditions", tmp_path / "junk.npy", "-o", out) == 2
