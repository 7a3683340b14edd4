"""Samples over training: of the averaged weights, from one noise, and nothing to the run itself."""

import errno
import os

import pytest
import torch

import fmkit
from fmkit.errors import ArgumentError
from fmkit.randomness import stream
from fmkit.saving import read_tensors
from fmkit.training import Callback, Settings, Snapshots

X = torch.randn(64, 2, generator=stream(0, "test")) * 3 + 5
SCALE = fmkit.transforms.Affine(5.0, 3.0)


def train(folder=None, callbacks=(), data=None, cond=None, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = fmkit.fields.MLP(2, width=8, depth=1, classes=None if cond is None else 3)
    settings = Settings(**{"steps": 12, "batch_size": 16, "lr": 1e-2, "loss_floor": False, **more})
    trainer = fmkit.Trainer(fmkit.paths.CondOT(), field, settings=settings, callbacks=callbacks)
    return trainer.fit(fmkit.data.Data(X, cond, transform=SCALE) if data is None else data, folder=folder)


def kept(folder):
    return {f.name: read_tensors(f) for f in sorted((folder / "samples").iterdir())}


def test_they_come_at_equal_distances_and_end_with_the_flow_itself(tmp_path):
    flow = train(tmp_path, [Snapshots(times=4, n=7)])
    found = kept(tmp_path)
    assert list(found) == [f"step_{step:08}.safetensors" for step in (3, 6, 9, 12)]
    assert [header["step"] for _, header in found.values()] == [3, 6, 9, 12]
    mine = flow.sample(7, solver=fmkit.solvers.Midpoint(10), generator=stream(0, "snapshots"))
    torch.testing.assert_close(found["step_00000012.safetensors"][0]["x"], mine, rtol=0, atol=0)
    all_of_them = torch.stack([tensors["x"] for tensors, _ in found.values()])
    assert (all_of_them.std(0) > 0).all()  # the flow changed
    assert (all_of_them.mean((0, 1)) - 5).abs().max() < 4  # in the data's units


def test_a_run_is_the_same_with_them(tmp_path):
    drawn = train(tmp_path / "with", [Snapshots(times=5)])
    plain = train(tmp_path / "without")
    assert all(torch.equal(a, b) for a, b in zip(drawn.parameters(), plain.parameters(), strict=True))
    both = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("with", "without")]
    assert both[0] == both[1]


def test_more_times_than_steps_are_every_step(tmp_path):
    train(tmp_path, [Snapshots(times=50, n=2)], steps=3)
    assert len(kept(tmp_path)) == 3


def test_conditions_are_those_of_the_data(tmp_path):
    labels = torch.arange(64) % 3
    flow = train(tmp_path, [Snapshots(times=1, n=20)], cond=labels)
    first = labels[fmkit.training.batches.Sampler(64, 16, 0).indices(0)].repeat(2)[:20]
    mine = flow.sample(20, cond=first, solver=fmkit.solvers.Midpoint(10), generator=stream(0, "snapshots"))
    torch.testing.assert_close(kept(tmp_path)["step_00000012.safetensors"][0]["x"], mine, rtol=0, atol=0)


def test_a_full_disk_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    real = os.fsync

    class Full(Callback):
        def on_step(self, run):
            def fail(descriptor):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "fsync", fail)

    class Emptied(Callback):
        def on_step(self, run):
            monkeypatch.setattr(os, "fsync", real)

    with pytest.warns(UserWarning, match=r"no samples of step 12: cannot write .*No space left"):
        train(tmp_path, [Full(), Snapshots(times=1), Emptied()])
    assert (tmp_path / "checkpoints" / "step_00000012.safetensors").is_file()
    assert kept(tmp_path) == {}


def test_without_a_folder_nothing_is_drawn():
    class Never(Snapshots):
        def _draw(self, run):
            raise AssertionError

    train(callbacks=[Never()])


@pytest.mark.parametrize("wrong", [{"times": 0}, {"n": 0}, {"times": 1.5}, {"n": "many"}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Snapshots(**wrong)
