"""What is remembered of real images is what would be computed again, and it is kept."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.metrics import ImageSet, image_distances, reference_set, references


class Features:
    """Sums over rows, and two classes; counts its batches."""

    identity = "sums"

    def __init__(self):
        self.asked = 0

    def __call__(self, images):
        self.asked += 1
        return images.sum(3).flatten(1)

    def with_logits(self, images):
        return self(images), torch.stack([images.flatten(1)[:, 0], -images.flatten(1)[:, 1]], 1)


def images(n=1200, seed=0):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255


def distances(reference, features):
    return image_distances(ImageSet(features, 300).add(images(400, seed=1) * 0.9), reference)


def test_a_kept_set_is_the_set_itself(tmp_path):
    features, direct = Features(), ImageSet(Features(), 300).add(images())
    made = reference_set(images(), features, kept=300, cache=tmp_path)
    assert features.asked == 3  # in batches of 500
    again = reference_set(images(), features, kept=300, cache=tmp_path)
    assert features.asked == 3
    assert made.count == again.count == 1200
    assert torch.equal(again.rows, made.rows)
    assert torch.equal(again.rows, direct.rows)
    assert distances(again, Features()) == distances(made, Features())
    assert distances(again, Features()) == pytest.approx(distances(direct, Features()), rel=1e-9)
    assert again.inception_score() == pytest.approx(direct.inception_score(), rel=1e-12)
    with pytest.raises(ArgumentError, match="images have shape"):
        image_distances(ImageSet(Features()).add(images(400).view(-1, 1, 2, 8)), again)
    with pytest.warns(UserWarning, match="are these the same units"):
        image_distances(ImageSet(Features()).add(images(400) / 255), again)
    again.add(images(100, seed=2))  # and it goes on from there
    want = direct.add(images(100, seed=2)).moments
    torch.testing.assert_close(again.moments.covariance, want.covariance, rtol=1e-12, atol=1e-9)
    assert len(again.rows) == 300


def test_other_images_features_rows_or_versions_are_other_sets(tmp_path, monkeypatch):
    features = Features()
    reference_set(images(400), features, kept=300, cache=tmp_path)
    before = features.asked
    reference_set(images(400).flip(0), features, kept=300, cache=tmp_path)
    reference_set(images(400), features, kept=299, cache=tmp_path)
    reference_set(images(400), features, kept=300, cache=tmp_path, identity="others")
    monkeypatch.setattr(references, "VERSION", 0)
    reference_set(images(400), features, kept=300, cache=tmp_path)
    assert features.asked == before + 4
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["half", "foreign", "another's"])
def test_a_damaged_one_is_made_again_with_a_message(tmp_path, damage):
    made = reference_set(images(400), Features(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "another's":
        reference_set(images(300), Features(), cache=tmp_path / "b")
        whole = next((tmp_path / "b").iterdir()).read_bytes()
    file.write_bytes({"half": whole[: len(whole) // 2], "foreign": b"x" * 99}.get(damage, whole))
    with pytest.warns(UserWarning, match=r"reference-\w+.safetensors .*; the reference is made again"):
        again = reference_set(images(400), Features(), cache=tmp_path)
    assert torch.equal(again.rows, made.rows)
    assert reference_set(images(400), Features(), cache=tmp_path).count == 400


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("mean"), "expected .*'mean'"),
        (lambda t: t.update(rows=t["rows"][:-1]), r"rows has shape \(399, 4\), expected \(400, 4\)"),
        (lambda t: t.update(scatter=t["scatter"][:, :2]), r"scatter has shape \(4, 2\)"),
        (lambda t: t.update(mean=t["mean"] * torch.nan), "mean has 4 non-finite values"),
    ],
)
def test_only_what_was_remembered_is_restored(spoil, message):
    tensors = ImageSet(Features()).add(images(400)).remembered()
    assert ImageSet(Features()).restore(tensors).count == 400
    spoil(tensors)
    with pytest.raises(ArgumentError, match=message):
        ImageSet(Features()).restore(tensors)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": lambda x: x.flatten(1)}, "no identity"),
        ({"identity": 3}, "identity is 3"),
        ({"features": None}, "features is None"),
        ({"images": images()[:, 0]}, "expected a tensor"),
        ({"images": images().int()}, "images has dtype torch.int32"),
        ({"kept": 1}, "kept is 1"),
        ({"cache": 1}, "cache is 1"),
    ],
)
def test_mistakes_are_refused(tmp_path, given, message):
    with pytest.raises(ArgumentError, match=message):
        reference_set(**{"images": images(), "features": Features(), "cache": tmp_path} | given)
