"""Bad words on the command line, and damaged run folders: one line on standard error, and a mistake's exit code."""

import shutil

import pytest
import torch

from fmkit.saving import read_tensors, write_tensors
from tests.commands import run


def refused(capsys, *words, lines=1):
    """What is said; one line, and no traceback."""
    code = run(*words)
    said = capsys.readouterr().err
    assert code in (1, 2), said
    assert said.count("\n") == lines
    last = said.splitlines()[-1]
    assert last.startswith("fmkit: ")
    assert "(unexpected" not in last
    assert len(last) > 25
    return last


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "moons"
    words = ["data={name: moons, n_train: 50, n_test: 20}", "trainer={steps: 2, batch_size: 8, checkpoint_every: 1}"]
    words += ["field={name: mlp, width: 8, depth: 1}", "solver={name: euler, steps: 2}", "trainer.loss_floor=false"]
    assert run("train", "moons", *words, "--out", folder, "--quiet") == 0
    return folder


@pytest.fixture
def damaged(trained, tmp_path):
    """A copy that stopped before its end; without checksums, which a forger would not leave wrong."""
    folder = tmp_path / "damaged"
    shutil.copytree(trained, folder)
    (folder / "flow.safetensors").unlink()
    (folder / "checkpoints.json").unlink()
    return folder


SAMPLE = [
    "-n 0", "-n -1", "-n a", "-n 2.5", f"-n {10**30}", "--seed -1", "--seed a", "--label 1", "--guidance nan",
    "--guidance inf", "--solver eulr", "--solver [1", "--solver 3", "--solver {name:,steps:0}", "--solver null",
    "--solver [1,2] --steps 3", "--solver 3 --steps 3", "--solver null --steps 3", "--steps 0", "--steps -3",
    "--solver dopri5 --steps 3", "-o a.txt", "-o .", "-o a.npy --log-prob", "-o no/where.npz", f"-o {'x' * 5000}.npz",
    "-o folder.npz", "-o folder.png", "-o a\0.npz",
]  # fmt: skip


@pytest.mark.parametrize("words", SAMPLE, ids=lambda words: words[:30])
def test_of_samples(trained, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    for name in ("folder.npz", "folder.png"):
        (tmp_path / name).mkdir()
    refused(capsys, "sample", trained, *words.split(" "))


EVALUATE = [
    "-k 0", "-k a", "-k 1.5", "--seed -1", "--seed a", "--divergence exakt", "--divergence [1", "--divergence 3",
    "--divergence euler", "--divergence null", "--divergence {probes:3}",
]  # fmt: skip


@pytest.mark.parametrize("words", EVALUATE)
def test_of_an_evaluation(trained, capsys, words):
    refused(capsys, "evaluate", trained, *words.split(" "))


WORDS = [
    "trainer.steps=-1", "trainer.steps=1e3", "trainer.lr=.nan", "trainer.lr=.inf", "trainer.betas=[1]",
    "trainer.betas=[2,3]", "trainer.precision=int8", "trainer.zz=3", "trainer=", "trainer.clip=0", "trainer.keep=0",
    "trainer.loss_floor=3", "seed=1.0", "seed=true", "seed=", "seed=[1]", "zz=3", "=", "x", "path", "path=", "path=3",
    ".path=3", "path..x=3", "path=@os:system", "path={}", "path=[]", "path={name: vp, name: ve}", "path=2020-01-01",
    "data.n_train=0", "data.n_train=1e3", "data.zz=1", "data=vp", "callbacks=progress",
    "callbacks=[{name: progress, every: a}]",
    "callbacks=[{name: progress, every: 0}]", "solver.rtol=0", "solver={name: euler, steps: 1e2}", "field.width=0",
    "field.event_shape=[]", "field.dropout=1", "field=null", "field=mixture-oracle", "field=module", "field=prediction",
    "source={name: gaussian, std: 0}", "source={name: gaussian, std: .nan}", "source={name: uniform, low: 1, high: 0}",
    "source=empirical", "source={name: empirical, data: [[1, 2], [3]]}", "time={name: logit-normal, std: 0}",
    "coupling=zz", "coupling=null", "objective={name: velocity, zz: 3}", "objective={name: velocity, time: 3}",
    "data={name: tabular, file: nowhere.csv}", "data={name: digits, split_seed: -1}",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_of_a_configuration(tmp_path, capsys, word):
    refused(capsys, "train", "moons", word, "--out", tmp_path / "run", "--quiet")
    assert not (tmp_path / "run" / "flow.safetensors").exists()


OTHERS = [
    "train", "train|", "train|\0", "train|a/b/c", "train|moonz", "train|fmkit/moonz", "train|.", "train|afile",
    "train|moons|--resume", "train|moons|--out|afile", "train|moons|--out|a\0b", "train|moons|--zz",
    "train|moons|trainer.steps=1|--out|" + "x" * 5000, "config|show|" + "a" * 5000, "sample|" + "a" * 5000,
    "sample|a\0b", "sample|afile", "evaluate|a\0b", "evaluate|afile", "evaluate|.", "config|show|", "config|show|zz",
    "config|show|moons|zz=3", "config|show|nowhere.yaml", "config|show|.", "config|show|moons|x", "config|schema|x",
    "plugins|list|zz", "plugins|info|", "plugins|info|/", "plugins|info|paths/", "plugins|info|paths/zz",
    "plugins|info|fmkit/zz", "plugins|info|\0", "plugins|check", "plugins|check|zz", "plugins|check|sigma=3",
    "plugins|check|vp|beta_max=a", "plugins|check|vp|zz=3", "plugins|check|vp|condot|beta_max=3",
    "plugins|check|vp|--all", "plugins|check|--package|zz", "plugins|check|moons", "plugins|check|vp|a=[",
    "plugins|check|euler|grid=zz", "plugins|check|euler|steps=0", "plugins|check|euler|steps.x=3",
    "plugins|check|mixture-oracle|means=3", "plugins|check|listed", "plugins|check|module", "zz", "--zz",
]  # fmt: skip


@pytest.mark.parametrize("words", OTHERS, ids=lambda words: words[:40])
def test_of_every_command(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("x")
    refused(capsys, *words.split("|"), *(["--quiet"] if words.startswith("train|") else []))


@pytest.mark.parametrize("value", [None, "x", [1], {}, -1, True, 1.5])
@pytest.mark.parametrize("key", ["kind", "step", "counted", "metrics_bytes", "settings", "parts"])
def test_a_checkpoint_whose_description_is_damaged_is_refused(damaged, capsys, key, value):
    for file in (damaged / "checkpoints").iterdir():
        tensors, header = read_tensors(file)
        write_tensors(file, tensors, {**header, key: value})
    assert "step_00000002.safetensors" in refused(capsys, "train", damaged, "--quiet")


@pytest.mark.parametrize("value", [None, torch.zeros(3)])
@pytest.mark.parametrize("key", ["total", "optimizer.0.exp_avg", "optimizer.1.step"])
def test_a_checkpoint_whose_tensors_are_damaged_is_refused(damaged, capsys, key, value):
    for file in (damaged / "checkpoints").iterdir():
        tensors, header = read_tensors(file)
        tensors = {k: v for k, v in tensors.items() if k != key} | ({} if value is None else {key: value})
        write_tensors(file, tensors, header)
    assert f"for {key}, expected one of shape" in refused(capsys, "train", damaged, "--quiet")


@pytest.mark.parametrize("words", ["trainer.lr=0.5", "field.width=9", "path=vp", "trainer.steps=a"])
def test_a_run_goes_on_with_its_own_numbers_alone(damaged, capsys, words):
    refused(capsys, "train", damaged, words, "--quiet")


@pytest.mark.parametrize("content", [b"{no json\n", b"[1]\n", b"3\n", b'{"loss": "a"}\n', b"\xff\xfe\n"])
def test_metrics_that_are_none_are_refused(trained, damaged, capsys, content):
    shutil.copy(trained / "flow.safetensors", damaged)
    (damaged / "metrics.jsonl").write_bytes(content)
    assert "metrics.jsonl, line 1: no record of numbers" in refused(capsys, "evaluate", damaged)


def test_metrics_that_are_lost_are_not_made_up(damaged, capsys):
    (damaged / "metrics.jsonl").unlink()
    assert "has 0 bytes; the checkpoint was written when it had" in refused(capsys, "train", damaged, "--quiet")
