"""A classifier as a feature extractor: what it knows, that it is kept, and what it refuses."""

import dataclasses
import math

import pytest
import scipy.special
import torch
from safetensors import safe_open

from fmkit.data import Data, Digits, Split
from fmkit.errors import ArgumentError
from fmkit.metrics import (
    Classifier,
    ClassifierSettings,
    Frechet,
    ImageSet,
    cache_folder,
    classifier,
    features,
)
from fmkit.metrics.cache import fingerprint

QUICK = ClassifierSettings(steps=150, batch_size=64, width=8)


@pytest.fixture(scope="module")
def digits():
    return Digits(flat=False, labels=True).load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def judge(digits, folder):
    return classifier(digits, QUICK, cache=folder)


@pytest.fixture
def untrained(monkeypatch):
    """From here on nothing is trained."""

    def train(*_):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(features, "_train", train)


def bars(n=40, levels=256, classes=2, colours=1, seed=0):
    """Images of upright bars (0) and lying ones (1)."""
    labels = torch.arange(n) % 2
    profile = torch.randint(levels, (n, colours, 1, 12), generator=torch.Generator().manual_seed(seed)).float()
    profile[:, :, :, 0], profile[:, :, :, 1] = 0, levels - 1
    x = profile.expand(-1, -1, 12, -1)
    x = torch.where(labels[:, None, None, None] == 0, x, x.transpose(2, 3)).contiguous()
    half = n // 2
    return Split(Data(x[:half], labels[:half]), x[half:], labels[half:], classes, levels)


def test_it_knows_digits_it_has_not_seen(judge, digits):
    answers = torch.cat([judge.predict(x[None] + 0.5) for x in digits.test])  # one by one
    assert judge.accuracy == pytest.approx((answers == digits.test_cond).float().mean().item(), abs=1e-6)
    assert judge.accuracy > 0.9
    assert torch.equal(judge.predict(digits.test), answers)
    chance = judge.logits(digits.test).softmax(1)[torch.arange(len(answers)), digits.test_cond]
    assert chance.mean() > 0.6  # and it is sure of them: the inception score sees its probabilities


def test_the_labels_are_linear_in_its_features(judge, digits):
    """A readout fitted to the features by least squares knows the classes: they are those of the trained network."""
    x, y = judge.features(digits.train.x), torch.nn.functional.one_hot(digits.train.cond, 10).float()
    assert x.shape == (len(y), 16)
    readout = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y, driver="gelsd").solution
    test = judge.features(digits.test)
    answers = torch.cat([test, torch.ones(len(test), 1)], 1) @ readout
    assert (answers.argmax(1) == digits.test_cond).float().mean() > 0.85


def test_dequantized_images_have_the_features_of_integer_ones(judge, digits):
    u = torch.rand(digits.test.shape, generator=torch.Generator().manual_seed(0)) * 0.999
    assert torch.equal(judge.features(digits.test + u), judge.features(digits.test))
    beyond = torch.where(digits.test == 0, -3.0, torch.where(digits.test == 16, 20.0, digits.test))
    assert torch.equal(judge.features(beyond), judge.features(digits.test))


def test_features_tell_digits_from_shuffled_pixels(judge, digits):
    shuffled = digits.test.flatten(1)[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    metric = Frechet(judge)
    assert metric(shuffled.view_as(digits.test), digits.train.x) > 20 * metric(digits.test, digits.train.x)


def test_sets_of_images_know_their_inception_score_by_it(judge, digits):
    """exp of the mean of KL(p(class | image) || p(class)); classes that are told apart score above one class alone."""
    known = judge.predict(digits.test) == digits.test_cond
    scores = []
    for chosen in (known, known & (digits.test_cond == 0)):
        p = judge.logits(digits.test[chosen]).double().softmax(1).numpy()
        want = math.exp(scipy.special.rel_entr(p, p.mean(0)).sum(1).mean())
        scores.append(ImageSet(judge).add(digits.test[chosen]).inception_score())
        assert scores[-1] == pytest.approx(want, rel=1e-9)
    assert 1 <= scores[1] < scores[0] / 2


@pytest.mark.usefixtures("untrained")
def test_it_is_kept(judge, digits, folder):
    again = classifier(digits, QUICK, cache=folder)
    assert again.accuracy == judge.accuracy
    assert again.identity == judge.identity
    assert torch.equal(again.features(digits.test), judge.features(digits.test))
    (file,) = folder.iterdir()
    with safe_open(file, "pt") as kept:  # and nothing is pickled
        assert set(kept.keys()) == set(judge.state_dict())


@pytest.mark.usefixtures("untrained")
def test_other_data_settings_or_versions_are_other_classifiers(digits, judge, folder, monkeypatch):
    changed = digits.train.x.clone()
    changed[0, 0, 0, 0] += 1
    relabelled = digits.train.cond.roll(1)
    for split in (
        dataclasses.replace(digits, train=Data(changed, digits.train.cond)),
        dataclasses.replace(digits, train=Data(digits.train.x, relabelled)),
        dataclasses.replace(digits, test=digits.test[:-1], test_cond=digits.test_cond[:-1]),
        dataclasses.replace(digits, levels=18),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            classifier(split, QUICK, cache=folder)
    for name, value in {"steps": 151, "batch_size": 65, "width": 9, "lr": 1e-3, "seed": 1}.items():
        with pytest.raises(AssertionError, match="trained again"):
            classifier(digits, dataclasses.replace(QUICK, **{name: value}), cache=folder)
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    with pytest.raises(AssertionError, match="trained again"):
        classifier(digits, QUICK, cache=folder)


@pytest.mark.parametrize("damage", ["half", "nothing", "foreign", "weights that are not finite", "another's"])
def test_a_damaged_one_is_trained_again_with_a_message(tmp_path, damage):
    split, settings = bars(), ClassifierSettings(steps=10, batch_size=4, width=2)
    first = classifier(split, settings, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "another's":
        classifier(split, dataclasses.replace(settings, width=3), cache=tmp_path / "b")
        (other,) = (tmp_path / "b").iterdir()
        file.write_bytes(other.read_bytes())
    elif damage == "weights that are not finite":
        file.write_bytes(whole[:-8] + b"\xff" * 8)
    else:
        file.write_bytes({"half": whole[: len(whole) // 2], "nothing": b"", "foreign": b"x" * 99}[damage])
    with pytest.warns(UserWarning, match=r"classifier-\w+.safetensors .*; the classifier is made again"):
        again = classifier(split, settings, cache=tmp_path)
    assert again.identity == first.identity  # the training follows from its seed
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the classifier is not kept for the next time"):
        classifier(bars(), ClassifierSettings(steps=10, width=2), cache=tmp_path / "file" / "cache")


def test_training_leaves_the_global_generator_alone_and_follows_from_the_seed(tmp_path):
    state = torch.get_rng_state()
    settings = [ClassifierSettings(steps=10, width=2, seed=seed) for seed in (0, 0, 1)]
    made = [classifier(bars(), s, cache=tmp_path / str(i)) for i, s in enumerate(settings)]
    assert torch.equal(torch.get_rng_state(), state)
    assert made[0].identity == made[1].identity != made[2].identity


def test_colour_and_odd_sizes(tmp_path):
    split = bars(colours=3, n=200)
    split.train.x, split.test = split.train.x[..., :11], split.test[..., :11]
    judge = classifier(split, ClassifierSettings(steps=100, width=4, batch_size=32), cache=tmp_path)
    assert judge.accuracy > 0.9
    assert judge.features(split.test).shape == (100, 8)


def test_the_folder_is_the_argument_then_the_variable_then_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FMKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "fmkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fmkit"
    monkeypatch.setenv("FMKIT_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    assert cache_folder(tmp_path / "here") == tmp_path / "here"
    with pytest.raises(ArgumentError, match="cache is 3, expected a folder"):
        cache_folder(3)


def test_a_fingerprint_is_of_dtype_shape_and_bytes():
    x = torch.arange(6)
    prints = [fingerprint(y) for y in (x, x.int(), x.view(2, 3), x.flip(0), None)] + [fingerprint(x, None)]
    assert len(set(prints)) == 6
    strided = torch.stack([x, -x], 1)[:, 0]
    assert fingerprint(strided) == fingerprint(x)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 1, 8, 8), r"range over \[.*\], expected grey levels 0 .. 16"),
        (torch.rand(4, 1, 8, 8) * 2 - 1, "expected grey levels 0 .. 16"),
        (torch.rand(4, 1, 8, 8) * 16 + 300, "expected grey levels 0 .. 16"),
        (torch.rand(4, 64), r"images have shape \(4, 64\), expected \(B, 1, 8, 8\)"),
        (torch.rand(4, 3, 8, 8), "images have shape"),
        (torch.rand(4, 1, 28, 28), "images have shape"),
        (torch.full((4, 1, 8, 8), torch.nan), "non-finite"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), "dtype torch.int64"),
        (None, "images is a NoneType"),
    ],
)
def test_images_in_other_units_or_shapes_are_refused(judge, images, message):
    for ask in (judge.features, judge.predict, judge.logits, judge):
        with pytest.raises(ArgumentError, match=message):
            ask(images)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Digits(flat=True, labels=True).load(), r"the train images have shape \(1437, 64\).*flat=False"),
        (Digits(flat=False).load(), "the split has no classes, .*labels=True"),
        (dataclasses.replace(bars(), levels=None), "the split has no grey levels"),
        (dataclasses.replace(bars(), levels=200), "other numbers than the grey levels 0 .. 199"),
        (dataclasses.replace(bars(), test=bars().test + 0.5), "the test images hold other numbers"),
        (dataclasses.replace(bars(), test_cond=None), "the labels of the test images are None"),
        (dataclasses.replace(bars(), test_cond=torch.zeros(20)), "the labels of the test images are a tensor"),
        (dataclasses.replace(bars(), test_cond=torch.full((20,), 2)), "not all in 0 .. 1"),
        (dataclasses.replace(bars(), train=Data([1, 2])), "the training images are"),
        ("digits", "split is 'digits', expected a Split"),
    ],
)
def test_splits_that_cannot_be_learnt_are_refused(split, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        classifier(split, QUICK, cache=tmp_path)


@pytest.mark.parametrize("bad", [{"steps": 9}, {"batch_size": 1}, {"width": 0}, {"lr": 0.0}, {"lr": "a"}, {"seed": -1}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ArgumentError, match=f"{next(iter(bad))} is "):
        ClassifierSettings(**bad)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((8, 8), 10, 17), r"images have shape \(8, 8\), expected \(C, H, W\)"),
        (((1, 8, 0), 10, 17), "a side of the images is 0"),
        (((1, 8, 8), 1, 17), "classes is 1, expected a whole number of at least 2"),
        (((1, 8, 8), 10, 1), "levels is 1"),
    ],
)
def test_networks_of_no_size_are_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        Classifier(*given)
