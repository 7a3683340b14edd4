"""Inception's features: torch-fidelity's numbers for the same weights, the file they come from, and the command."""

import io
import json
import math
import os
import pickle

import numpy as np
import pytest
import torch

from fmkit.data import Data, Split
from fmkit.errors import ArgumentError, SavedFileError
from fmkit.image_evaluation import feature_extractor
from fmkit.metrics import ImageSet, Inception, image_sets, inception
from fmkit.metrics.inception_network import InceptionNetwork, resized
from tests.commands import run

OTHERS = "has not the SHA-256 sum of FID's weights"


def hashed(n, seed):
    """n numbers in [-0.5, 0.5) that are the same everywhere."""
    at = torch.arange(n, dtype=torch.float64)
    return (torch.sin(12.9898 * (at % 9973) + 78.233 * (at // 9973 % 9967) + seed) * 43758.5453).remainder(1) - 0.5


@pytest.fixture(scope="module")
def weights():
    made = {}
    for k, (name, like) in enumerate(sorted(InceptionNetwork().state_dict().items())):
        u = hashed(like.numel(), k).reshape(like.shape).float()
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(0)
        elif like.ndim > 1:
            made[name] = u * math.sqrt(24 / like[0].numel())
        else:
            made[name] = 1 + u if name.endswith(("running_var", "bn.weight")) else u
    return made


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def extractor(file):
    with pytest.warns(UserWarning, match=OTHERS):
        return Inception(file)


PICTURES = ((hashed(2 * 3 * 20 * 31, 7) + 0.5) * 256).floor().reshape(2, 3, 20, 31).float()


def test_the_numbers_of_torch_fidelity(extractor):
    """FeatureExtractorInceptionV3 of torch-fidelity 0.4.0, with these weights, of these images."""
    features, logits = extractor.with_logits(PICTURES)
    want = [
        [1.10549, 0.72702, 5.30653, 0.54985, 0.08443, 0.0, 7.0158, 0.34195],
        [1.18837, 0.7867, 5.01953, 0.38828, 0.09391, 0.0, 6.7936, 0.32333],
    ]
    torch.testing.assert_close(features[:, ::256], torch.tensor(want), rtol=1e-4, atol=1e-4)
    want = [
        [25.6794, -8.3135, -8.4267, 10.4346, -14.3387, 1.7326, 25.028, -21.4452],
        [24.946, -7.659, -8.8312, 9.6627, -14.1073, 1.6629, 24.6235, -20.516],
    ]
    torch.testing.assert_close(logits[:, ::126], torch.tensor(want), rtol=1e-4, atol=1e-3)
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert torch.equal(extractor(PICTURES), features)


@pytest.mark.parametrize("n", [1, 8, 299, 500])
def test_resizing_is_tensorflows(n):
    """Of a ramp, pixel k of 299 has the value k n/299, up to the last pixel's."""
    ramp = torch.arange(n, dtype=torch.float32)
    want = (torch.arange(299) * n / 299).clamp_max(n - 1)
    for picture in (ramp.expand(1, 2, 3, n), ramp[:, None].expand(1, 2, n, 3).mT):
        torch.testing.assert_close(resized(picture), want.expand(1, 2, 299, 299), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(resized(ramp[:, None].expand(1, 2, n, 3)), want[:, None].expand(1, 2, 299, 299))


def test_grey_images_of_few_levels_are_what_their_pictures_are(file, extractor):
    grey = ((hashed(2 * 12 * 12, 3) + 0.5) * 17).floor().reshape(2, 1, 12, 12).float()
    with pytest.warns(UserWarning, match=OTHERS):
        few = Inception(str(file), levels=17)
    picture = (grey / 16 * 255).round().expand(-1, 3, -1, -1)
    assert torch.equal(few(grey), extractor(picture))
    assert torch.equal(few(grey + 0.7), few(grey))  # dequantized
    assert few.identity != extractor.identity


def test_it_does_not_train_and_leaves_the_global_generator(file, extractor):
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=OTHERS):
        again = Inception(file).train()
    assert torch.equal(torch.get_rng_state(), state)
    assert again.identity == extractor.identity
    assert torch.equal(again(PICTURES), extractor(PICTURES))
    assert not any(p.requires_grad for p in again.parameters())


def test_the_inception_score_is_of_its_logits(extractor):
    share = extractor.with_logits(PICTURES)[1].double().softmax(1)
    want = (share * (share / share.mean(0)).log()).sum(1).mean().exp().item()
    assert ImageSet(extractor).extend(PICTURES.split(1)).inception_score() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 2, 8, 8), r"expected a tensor \(B, 1, H, W\) or \(B, 3, H, W\)"),
        (torch.zeros(2, 64), "expected a tensor"),
        (torch.rand(2, 3, 8, 8), r"expected grey levels 0 .. 255"),
        (torch.full((2, 3, 8, 8), math.nan), "images"),
        (None, "images is None"),
    ],
)
def test_what_are_no_images_is_refused(extractor, images, said):
    with pytest.raises(ArgumentError, match=said):
        extractor(images)


def test_the_file_is_looked_for_where_it_may_be(file, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(ArgumentError, match=r"no Inception weights at .*cache.*6726825d.pth, nor in .*hub.*https://"):
        Inception()
    with pytest.raises(ArgumentError, match=r"no weights at .*nothing.pth"):
        Inception(tmp_path / "nothing.pth")
    for folder, name in (
        ("hub/checkpoints", inception.ALSO),
        ("hub/checkpoints", inception.FILE),
        ("cache", inception.FILE),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).symlink_to(file)
        with pytest.warns(UserWarning, match=f"{folder}/{name}"):
            Inception()


def test_fids_own_weights_are_known_by_their_sum(weights, file, tmp_path, monkeypatch, extractor):
    """In torch's old format, as the true file is; and without what old files leave out."""
    old = tmp_path / "old.pth"
    kept = {name: value for name, value in weights.items() if "num_batches" not in name}
    torch.save(kept, old, _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"sum of FID's weights \(6726825d"):
        again = Inception(old)
    assert torch.equal(again(PICTURES), extractor(PICTURES))
    monkeypatch.setattr(inception, "SUM", extractor.sum[:8])
    Inception(file)  # no warning, which would be an error


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def broken(weights, kind):
    first = "Conv2d_1a_3x3.bn.bias"
    return {
        "text": lambda: b"these are no weights",
        "nothing": lambda: b"",
        "cut off": lambda: saved({first: weights[first]})[:-100],
        "a pickle that does harm": lambda: pickle.dumps(Harm()),
        "harm in torch's form": lambda: saved(Harm()),
        "a list": lambda: saved([1, 2]),
        "another network": lambda: saved({"layer.weight": torch.zeros(3)}),
        "one missing": lambda: saved({k: v for k, v in weights.items() if k != first}),
        "another shape": lambda: saved(weights | {first: torch.zeros(3)}),
        "no numbers": lambda: saved(weights | {first: torch.full((32,), math.nan)}),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "is no file of weights"),
        ("nothing", "is no file of weights"),
        ("cut off", "is no file of weights"),
        ("a pickle that does harm", "is no file of weights"),
        ("harm in torch's form", "is no file of weights"),
        ("a list", "expected weights by name"),
        ("another network", "weights of another network .*Conv2d_1a_3x3.bn.bias' is missing"),
        ("one missing", r"'Conv2d_1a_3x3.bn.bias' is missing, one of 1 such"),
        ("another shape", r"'Conv2d_1a_3x3.bn.bias', expected finite numbers \(32,\)"),
        ("no numbers", "expected finite numbers"),
    ],
)
def test_files_of_another_kind_are_refused_and_nothing_is_run(weights, kind, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pth").write_bytes(broken(weights, kind))
    with pytest.raises(SavedFileError, match=said) as refused:
        Inception("file.pth")
    assert inception.SOURCE in str(refused.value)
    assert not (tmp_path / "harm").exists()


def test_by_name_it_has_the_levels_of_the_data(file):
    split = Split(Data(torch.zeros(4, 1, 8, 8)), torch.zeros(4, 1, 8, 8), None, None, 17)
    with pytest.warns(UserWarning, match=OTHERS):
        assert feature_extractor({"name": "inception", "weights": str(file)}, split).levels == 17


def test_the_command_takes_images_without_labels(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    pictures = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", x_train=pictures[:6], x_test=pictures[6:])
    data = f"data={{name: image-arrays, file: {tmp_path / 'pictures.npz'}}}"
    words = [
        "trainer.steps=2",
        "trainer.batch_size=4",
        "solver={name: euler, steps: 1}",
        "field={name: unet, preset: tiny, channels: 8}",
    ]
    folder = tmp_path / "run"
    assert run("train", "digits", data, *words, "--out", folder, "-q") == 0
    capsys.readouterr()
    assert run("evaluate", folder, "--images", 4) == 2
    assert "the classifier needs labelled images" in capsys.readouterr().err
    assert run("evaluate", folder, "--images", 4, "--features", "inception") == 2
    said = capsys.readouterr().err
    assert "--features" in said
    assert "there are no Inception weights at" in said
    assert run("evaluate", folder, "--features", "inception") == 2
    assert "--features: it is an option of --images" in capsys.readouterr().err
    spec = f"{{name: inception, weights: {file}}}"
    seen = []  # a Fréchet distance of 2,048 features takes long, and is tested beside others
    monkeypatch.setattr(image_sets, "moments_distance", lambda a, b: seen.append((a, b)) or 0.5)
    with pytest.warns(UserWarning, match=OTHERS):
        assert run("evaluate", folder, "--images", 4, "--features", spec, "--json") == 0
    assert [(a.count, b.count, len(a.mean)) for a, b in seen] == [(4, 6, 2048), (4, 6, 2048)]
    found = json.loads(capsys.readouterr().out)
    assert found["features"] == spec
    assert {"fid", "kid", "inception_score", "fid_held_out"} <= set(found)
    assert "accuracy" not in found
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the reference, and no classifier
