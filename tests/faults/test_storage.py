"""Checkpoints on a bad day: damaged, hostile, interrupted, and without a disk to write to."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

import fmkit
from fmkit import saving
from fmkit.errors import SavedFileError
from fmkit.training import Callback
from fmkit.training.checkpoint import Checkpoints
from tests.memory import little_memory

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(3))


class At(Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, run):
        if run.step == self.step:
            self.action(run)


def trainer(callbacks=(), width=8, **settings):
    torch.manual_seed(0)
    values = {"steps": 12, "batch_size": 16, "log_every": 4, "checkpoint_every": 3, "loss_floor": False, **settings}
    field = fmkit.fields.MLP(2, width=width, depth=1, dropout=0.2)
    return fmkit.Trainer(fmkit.paths.CondOT(), field, settings=fmkit.Settings(**values), callbacks=callbacks)


def files(folder):
    return {f.name: f.read_bytes() for f in [folder / "metrics.jsonl", *sorted((folder / "checkpoints").iterdir())]}


def cut(folder, step=11, **settings):
    """A run that crashed after `step`."""

    def crash(run):
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        trainer([At(step, crash)], **settings).fit(DATA, folder=folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer().fit(DATA, folder=folder)
    return files(folder)


def test_one_flipped_bit_gives_way_to_the_checkpoint_before(tmp_path, whole):
    """A weight's lowest bit: the file's form is whole, and only a checksum can tell."""
    cut(tmp_path)
    newest = Checkpoints(tmp_path).files()[0]
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum is not the one"):
        trainer().fit(DATA, folder=tmp_path, resume=True)
    there = files(tmp_path)
    assert there == whole | {"step_00000009.damaged": bytes(data)}


def test_a_damaged_checkpoint_is_not_counted_among_the_last(tmp_path, whole):
    """With one kept, the damaged one of a later step would otherwise push out every good one before it."""
    cut(tmp_path, keep=2)
    newest = Checkpoints(tmp_path).files()[0]
    newest.write_bytes(newest.read_bytes()[:-1])

    def look(run):
        assert [f.name for f in run.checkpoints.files()] == ["step_00000006.safetensors"]

    with pytest.warns(UserWarning, match="damaged"):
        trainer([At(7, look)], keep=1).fit(DATA, folder=tmp_path, resume=True)


def test_where_every_checkpoint_is_damaged_the_run_begins_again(tmp_path, whole):
    cut(tmp_path)
    for file in Checkpoints(tmp_path).files():
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        trainer().fit(DATA, folder=tmp_path, resume=True)
    assert {k: v for k, v in files(tmp_path).items() if not k.endswith(".damaged")} == whole


@pytest.mark.parametrize("moment", ["ready", "replace"])
def test_cut_off_inside_the_write(tmp_path, whole, monkeypatch, moment):
    """Before the manifest, and between the manifest and the rename; nothing of the half-written file stays."""
    real = os.replace

    def fail(source, target):
        if str(target).endswith("step_00000009.safetensors" if moment == "replace" else "checkpoints.json") and (
            "9" in str(target) or b"00000009" in Path(source).read_bytes()
        ):
            # As after a kill: the temporary file is left behind.
            shutil.copy(source, f"{source}left")
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(DATA, folder=tmp_path)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer().fit(DATA, folder=tmp_path, resume=True)
    assert files(tmp_path) == whole
    assert not list(tmp_path.rglob("*left"))


def test_written_twice_a_checkpoint_is_sound_at_every_moment(tmp_path, monkeypatch):
    store = Checkpoints(tmp_path)
    store.open()
    header = {"format": saving.FORMAT, "kind": "checkpoint"}
    store.write(0, {"a": torch.zeros(2)}, header, 2, None)
    real = os.replace

    def fail(source, target):
        if str(target).endswith(".safetensors"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        store.write(0, {"a": torch.ones(2)}, header, 2, None)
    assert [path.name for path, _ in store.sound()] == ["step_00000000.safetensors"]


def test_the_best_is_kept_beside_the_last(tmp_path):
    store = Checkpoints(tmp_path)
    store.open()
    header = {"format": saving.FORMAT, "kind": "checkpoint"}
    for step, loss in enumerate([0.5, 0.2, None, 0.4, 0.3]):
        store.write(step, {"a": torch.zeros(2)}, header, 1, loss)
    assert store.best() == "step_00000001.safetensors"
    assert [f.name for f in store.files()] == ["step_00000004.safetensors", "step_00000001.safetensors"]


def test_validation_marks_the_best(tmp_path):
    trainer(validate_every=3, keep=1).fit(DATA, validation=DATA[:16], folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["validation_loss"] for r in lines if "validation_loss" in r}
    assert Checkpoints(tmp_path).best() == f"step_{min(losses, key=losses.get):08d}.safetensors"


def test_a_run_from_before_manifests_is_taken_up(tmp_path, whole):
    cut(tmp_path)
    (tmp_path / "checkpoints.json").unlink()
    trainer().fit(DATA, folder=tmp_path, resume=True)
    assert files(tmp_path) == whole


def test_a_manifest_of_another_format_is_refused_by_name(tmp_path):
    cut(tmp_path)
    (tmp_path / "checkpoints.json").write_text('{"format": 9, "files": {}}')
    with pytest.raises(SavedFileError, match=r"checkpoints.json has format 9; fmkit .* reads format 1"):
        trainer().fit(DATA, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"format": 1, "files": {"step_00000009.safetensors": 3}}']
)
def test_a_damaged_manifest_is_said_and_done_without(tmp_path, whole, text):
    cut(tmp_path)
    (tmp_path / "checkpoints.json").write_text(text)
    with pytest.warns(UserWarning, match="without their checksums"):
        trainer().fit(DATA, folder=tmp_path, resume=True)
    assert files(tmp_path) == whole


def test_another_networks_checkpoint_is_refused(tmp_path):
    cut(tmp_path)
    with pytest.raises(SavedFileError, match=r"has shape \(8, .*this run has \(16,"):
        trainer(width=16).fit(DATA, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)]
)
def test_a_signal_saves_and_leaves(tmp_path, whole, capsys, number, error, code):
    # as Python begins: a shell's background jobs have Ctrl-C ignored, and a run leaves it so
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    found = signal.signal(number, before)
    try:
        with pytest.raises(error) as left:
            trainer([At(7, lambda run: signal.raise_signal(number))]).fit(DATA, folder=tmp_path)
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, found)
    assert getattr(left.value, "code", None) == code
    assert "after step 7 of 12: saved in" in capsys.readouterr().err
    assert Checkpoints(tmp_path).files()[0].name == "step_00000007.safetensors"
    trainer().fit(DATA, folder=tmp_path, resume=True)
    assert files(tmp_path) == whole


def test_a_file_too_large_for_its_limit(tmp_path):
    """The kernel's own refusal, as a full disk's: EFBIG in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(run):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    try:
        with pytest.raises(
            SavedFileError,
            match="File too large .*last good checkpoint is .*step_00000006",
        ):
            trainer([At(8, limit)]).fit(DATA, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_folder_that_vanishes(tmp_path):
    with pytest.raises(SavedFileError, match=r"No such file or directory \(step 9\); there is no checkpoint yet"):
        trainer([At(8, lambda run: shutil.rmtree(tmp_path / "run"))]).fit(DATA, folder=tmp_path / "run")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_errors_of_the_disk_keep_the_last_checkpoint(tmp_path, whole, monkeypatch, code):
    real = os.fsync

    def fail(descriptor):
        if os.fstat(descriptor).st_size > 2000:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    def break_it(run):
        monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(SavedFileError, match=rf"{os.strerror(code)} .*last good checkpoint is .*step_00000006"):
        trainer([At(8, break_it)]).fit(DATA, folder=tmp_path)
    monkeypatch.undo()
    trainer().fit(DATA, folder=tmp_path, resume=True)
    assert files(tmp_path) == whole


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    """Not on resume, not on loading a flow, not when a pickle lies where a file of ours should."""
    cut(tmp_path)
    newest = Checkpoints(tmp_path).files()[0]
    newest.write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "bad.safetensors").write_bytes(pickle.dumps(print))

    def refuse(*arguments, **more):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.warns(UserWarning, match="damaged"):
        trainer().fit(DATA, folder=tmp_path, resume=True).save(tmp_path / "flow.safetensors")
    fmkit.Flow.load(tmp_path / "flow.safetensors").sample(3)
    with pytest.raises(SavedFileError, match="damaged or no safetensors"):
        fmkit.Flow.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        b"\x02\0\0\0\0\0\0\0[]",
        safetensors.torch.save({"a": torch.zeros(1)}, {"fmkit": "[" * 100_000}),
        safetensors.torch.save({"a": torch.zeros(1)}, {"fmkit": '{"format": 2}'}),
        b'\x4a\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'.ljust(90),
    ],
)
def test_hostile_files_are_refused_before_memory_is_taken(tmp_path, data):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with little_memory(2**28), pytest.raises(SavedFileError, match="damaged|format 2"):
        saving.read_tensors(path)
