"""Items of a data set that cannot be read: named by their index, or replaced, always by the same ones."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fmkit
from fmkit.errors import ArgumentError
from fmkit.randomness import stream
from fmkit.training import Settings
from fmkit.training.batches import Sampler

X = torch.randn(20, 2, generator=stream(0, "test"))


class Corrupt(Dataset):
    """Some items cannot be read, some have another shape."""

    def __init__(self, broken=(), odd=(), labels=False):
        self.broken, self.odd, self.labels = broken, odd, labels

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        if i in self.broken:
            raise OSError(f"photo_{i}.png is truncated\nsecond line")
        x = X[i, :1] if i in self.odd else X[i]
        return (x, i % 3) if self.labels else x


def train(data, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labelled = getattr(data, "labels", False)
        field = fmkit.fields.MLP(2, width=8, depth=1, classes=3 if labelled else None)
    numbers = {"steps": 6, "batch_size": 10, "loss_floor": False, **settings}
    return fmkit.Trainer(fmkit.paths.CondOT(), field, settings=Settings(**numbers), callbacks=[])


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("wrapped", [lambda d: d, lambda d: DataLoader(d, batch_size=10)], ids=["dataset", "loader"])
def test_a_broken_item_is_named(wrapped):
    data = Corrupt(broken=[13])
    said = r"item 13 of the data set cannot be read \(OSError: photo_13.png is truncated\)$"
    with pytest.raises(ArgumentError, match=said):
        train(data).fit(wrapped(data))
    data = Corrupt(odd=[4])
    with pytest.raises(ArgumentError, match=r"item 4 of the data set has shape \(1,\), item 0 \(2,\)"):
        train(data).fit(wrapped(data))


def test_a_broken_item_in_a_worker_is_named():
    data = Corrupt(broken=[13])
    with pytest.raises(ArgumentError, match=r"item 13 of the data set cannot be read"):
        train(data).fit(DataLoader(data, batch_size=10, num_workers=1))


@pytest.mark.parametrize("labels", [False, True])
def test_the_next_item_takes_its_place(labels):
    class Replaced(Corrupt):
        def __getitem__(self, i):
            return super().__getitem__({4: 5, 13: 15, 14: 15, 19: 0}.get(i, i))

    broken, whole = Corrupt(broken=[13, 14, 19], odd=[4], labels=labels), Replaced(labels=labels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = train(broken, skip_corrupt=True).fit(broken)
    assert same(found, train(whole).fit(whole))
    named = {str(w.message).split(" of the")[0] for w in caught}
    assert named == {"item 4", "item 13", "item 14", "item 19"}
    seen = [i for k in range(6) for i in Sampler(20, 10, 0).indices(k).tolist()]
    assert {4, 13, 14, 19} <= set(seen)  # or this test would have looked at nothing


@pytest.mark.filterwarnings("ignore:item 13 of the data set")
def test_a_resumed_run_replaces_the_same(tmp_path):
    data = Corrupt(broken=[13])
    whole = train(data, skip_corrupt=True).fit(data, folder=tmp_path / "whole")
    train(data, skip_corrupt=True, steps=3).fit(data, folder=tmp_path / "cut")
    assert same(whole, train(data, skip_corrupt=True).fit(data, folder=tmp_path / "cut", resume=True))


@pytest.mark.filterwarnings("ignore:item .* of the data set cannot be read")
def test_where_none_can_be_read_the_run_ends():
    data = Corrupt(broken=range(20))
    with pytest.raises(ArgumentError, match="none of the 20 items of the data set can be read"):
        train(data, skip_corrupt=True).fit(data)
    with pytest.raises(ArgumentError, match="skip_corrupt"):
        Settings(skip_corrupt="yes")
