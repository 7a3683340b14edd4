"""Callbacks beside the loop: telemetry, and the NFE of the flow as it is."""

import json
import os

import pytest
import torch

import fmkit
from fmkit.errors import ArgumentError, CombinationError
from fmkit.paths import CondOT
from fmkit.randomness import stream
from fmkit.solvers import RK4, Dopri5
from fmkit.training import NFE, Progress, Settings, Snapshots, Telemetry, TensorBoard
from fmkit.training.callbacks import Callback

X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def train(folder=None, callbacks=(), resume=False, cond=None, **settings):
    torch.manual_seed(0)
    settings = Settings(**({"steps": 8, "batch_size": 8, "log_every": 2, "checkpoint_every": 2, "keep": 9} | settings))
    network = fmkit.fields.MLP(2, width=8, depth=1, classes=None if cond is None else 3)
    trainer = fmkit.Trainer(CondOT(), network, settings=settings, callbacks=callbacks)
    return trainer.fit(X, cond, folder=folder, resume=resume)


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_telemetry_stands_beside_the_metrics_and_has_the_clock(tmp_path):
    train(tmp_path, [Telemetry()])
    told = lines(tmp_path, "telemetry.jsonl")
    assert [line["step"] for line in told] == [2, 4, 6, 8]
    seconds = [line["seconds"] for line in told]
    assert seconds == sorted(seconds)
    for before, line in zip([{"seconds": 0.0}, *told], told, strict=False):
        assert line["steps_per_second"] * (line["seconds"] - before["seconds"]) == pytest.approx(2, rel=0.5)
        assert line["samples_per_second"] == pytest.approx(8 * line["steps_per_second"], rel=0.01)
        assert 2**24 < line["memory"] < 2**36
    assert not any("second" in key for line in lines(tmp_path, "metrics.jsonl") for key in line)


def test_telemetry_goes_back_with_the_run_and_its_seconds_go_on(tmp_path):
    train(tmp_path, [Telemetry()])
    for path in sorted((tmp_path / "checkpoints").iterdir())[2:]:
        path.unlink()
    with (tmp_path / "telemetry.jsonl").open("a") as file:
        file.write('not a line\n{"step": -1, "seconds": 0}\n[]\n{"step": 9')
    before = lines_that_are(tmp_path)
    train(tmp_path, [Telemetry()], resume=True)
    after = lines(tmp_path, "telemetry.jsonl")
    assert [line["step"] for line in after] == [2, 4, 6, 8]
    assert after[:2] == before[:2]
    assert after[2]["seconds"] > before[1]["seconds"]


def lines_that_are(folder):
    return [json.loads(line) for line in (folder / "telemetry.jsonl").read_text().splitlines()[:4]]


def test_telemetry_that_cannot_be_written_costs_a_warning_and_not_the_run(tmp_path):
    (tmp_path / "telemetry.jsonl").mkdir()
    with pytest.warns(UserWarning, match=r"no telemetry: .*telemetry.jsonl cannot be written: Is a directory"):
        train(tmp_path, [Telemetry()])
    assert lines(tmp_path, "metrics.jsonl")[-1]["step"] == 8


def test_telemetry_is_there_by_default_and_needs_no_folder(tmp_path, monkeypatch):
    train(tmp_path, None)
    assert (tmp_path / "telemetry.jsonl").exists()
    monkeypatch.chdir(tmp_path)
    train(None, [Telemetry()])
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "checkpoints.json", "metrics.jsonl", "telemetry.jsonl"]


@pytest.mark.parametrize("cond", [None, torch.arange(64) % 3], ids=["plain", "labels"])
def test_nfe_is_that_of_the_flow_that_a_step_would_leave(tmp_path, cond):
    train(tmp_path, [NFE(every=3, n=20)], cond=cond)
    measured = {line["step"]: line["nfe"] for line in lines(tmp_path, "metrics.jsonl") if "nfe" in line}
    assert sorted(measured) == [3, 6, 8]
    flow = train(cond=cond, callbacks=[], steps=6)
    first = None if cond is None else cond[fmkit.training.batches.Sampler(64, 8, 0).indices(0)].repeat(3)[:20]
    solution = flow.trajectory(20, cond=first, generator=stream(0, "nfe"))
    assert measured[6] == solution.nfe.double().mean().item()


def test_nfe_by_a_solver_of_its_own_and_that_of_fixed_steps(tmp_path):
    train(tmp_path / "four", [NFE(every=8, n=4, solver=RK4(5))])
    assert [line["nfe"] for line in lines(tmp_path / "four", "metrics.jsonl") if "nfe" in line] == [20.0]
    train(tmp_path / "tight", [NFE(every=8, n=4, solver=Dopri5(rtol=1e-9, atol=1e-9))])
    train(tmp_path / "loose", [NFE(every=8, n=4, solver=Dopri5(rtol=1e-2, atol=1e-2))])
    tight, loose = (lines(tmp_path / name, "metrics.jsonl")[-2]["nfe"] for name in ("tight", "loose"))
    assert tight > loose > 0


def test_measuring_changes_nothing_of_the_run(tmp_path):
    measured, plain = train(tmp_path, [NFE(every=1, n=4)]), train(callbacks=[])
    for a, b in zip(measured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad


def test_nfe_needs_a_whole_network():
    class InParts:
        in_parts = True

    with pytest.raises(CombinationError, match="the callback 'nfe' needs the whole network in one process"):
        NFE().on_start(InParts())


@pytest.mark.parametrize("wrong", [{"every": 0}, {"n": 0}, {"every": 1.5}, {"n": "many"}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        NFE(**wrong)


def test_tensorboard_has_all_that_is_measured(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, [NFE(every=4, n=4), Telemetry(), TensorBoard()])
    reader = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    tags = set(reader.Tags()["scalars"])
    assert {"loss", "lr", "gradient_norm", "nfe", "loss_floor"} <= tags
    assert any(tag.startswith("loss_t") for tag in tags)
    written = {(r["step"], r["nfe"]) for r in lines(tmp_path, "metrics.jsonl") if "nfe" in r}
    assert {e.step: e.value for e in reader.Scalars("nfe")} == pytest.approx(dict(written), rel=1e-6)
    for name in ("seconds", "steps_per_second", "samples_per_second", "memory"):
        written = {r["step"]: r[name] for r in lines(tmp_path, "telemetry.jsonl")}
        assert {e.step: e.value for e in reader.Scalars(f"telemetry/{name}")} == pytest.approx(written, rel=1e-6)


def test_callbacks_are_named_in_a_configuration():
    for cls in (NFE, Telemetry, Progress, TensorBoard, Snapshots):
        name = cls.__name__.lower()
        assert fmkit.specs.build(Callback, {"name": name}, "callbacks.0").__class__ is cls
