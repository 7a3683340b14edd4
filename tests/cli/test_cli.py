"""The command line: what it leaves behind, its exit codes, and its one-line errors."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import fmkit
from fmkit.cli import main
from tests.commands import run

QUICK = ["trainer.steps=30", "trainer.batch_size=64", "field.width=16", "field.depth=1", "trainer.checkpoint_every=10"]


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "moons"
    data = "data={name: moons, n_train: 500, n_test: 100}"
    assert run("train", "moons", data, *QUICK, "--out", folder, "--quiet") == 0
    return folder


def test_a_run_folder_is_complete_and_repeats_itself(moons, tmp_path, capsys):
    names = {p.name for p in moons.iterdir()}
    assert names == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "telemetry.jsonl",
        "samples",
        "metrics.json",
        "checkpoints",
        "checkpoints.json",
        "flow.safetensors",
        "samples.png",
        "curves.png",
    }
    assert run("train", moons / "config.yaml", "--out", tmp_path / "again", "--json") == 0
    assert json.loads(capsys.readouterr().out)["held_out"] == 100
    assert (moons / "flow.safetensors").read_bytes() == (tmp_path / "again/flow.safetensors").read_bytes()
    figures, again = (json.loads((f / "metrics.json").read_text()) for f in (moons, tmp_path / "again"))
    for key in ("nll", "nfe", "frechet", "sliced_wasserstein", "losses"):
        assert figures[key] == again[key]


def test_the_figures_are_those_of_the_saved_flow(moons):
    """The likelihood in metrics.json, recomputed without fmkit's metrics."""
    flow = fmkit.Flow.load(moons / "flow.safetensors")
    test = fmkit.data.Moons(n_train=500, n_test=100).load(0).test
    figures = json.loads((moons / "metrics.json").read_text())
    assert figures["nll"] == pytest.approx(-flow.log_prob(test.float()).double().mean().item(), abs=2e-3)
    assert figures["held_out"] == 100
    lines = [json.loads(line) for line in (moons / "metrics.jsonl").read_text().splitlines()]
    assert figures["losses"]["loss"] == lines[-2]["loss"]
    assert lines[-1]["step"] == 30


def test_a_finished_run_is_not_trained_again_by_mistake(moons, capsys):
    assert run("train", "moons", *QUICK, "--out", moons) == 2
    assert "holds a run already; add --resume" in capsys.readouterr().err


def test_no_command_unpickles(moons, tmp_path, monkeypatch):
    copy = tmp_path / "moons"
    shutil.copytree(moons, copy)

    def refuse(*arguments, **more):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert run("sample", copy, "-n", 3, "-o", tmp_path / "x.csv") == 0
    assert run("evaluate", copy) == 0
    assert run("report", copy) == 0
    assert run("runs", "show", copy) == 0
    assert (
        run(
            "train",
            "moons",
            "--out",
            copy,
            "--resume",
            "--quiet",
            "data={name: moons, n_train: 500, n_test: 100}",
            *QUICK,
        )
        == 0
    )


def test_resuming_continues_to_the_same_bits(moons, tmp_path):
    data = "data={name: moons, n_train: 500, n_test: 100}"
    folder = tmp_path / "cut"
    program = (
        "import os, signal, fmkit.training.step as s\n"
        "take = s.Stepper.take\n"
        "def dying(self, batch):\n"
        "    if self.run.step == 17: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return take(self, batch)\n"
        "s.Stepper.take = dying\n"
        "from fmkit.cli import main; main()\n"
    )
    words = ["train", "moons", data, *QUICK, "--out", str(folder), "--quiet"]
    # The sum of a batch depends on how many threads share it, in the last bit: both runs get as many.
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    died = subprocess.run([sys.executable, "-c", program, *words], env=env, check=False)
    assert died.returncode == -9
    assert not (folder / "flow.safetensors").exists()
    assert run("train", folder, "--quiet") == 0
    for name in ("flow.safetensors", "metrics.jsonl", "checkpoints/step_00000030.safetensors"):
        assert (folder / name).read_bytes() == (moons / name).read_bytes(), name


def test_sampling_writes_every_kind_of_file(moons, tmp_path, capsys):
    assert run("sample", moons, "-n", 20, "-o", tmp_path / "s.npz", "--log-prob", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    archive = np.load(tmp_path / "s.npz")
    assert archive["samples"].shape == (20, 2)
    flow = fmkit.Flow.load(moons / "flow.safetensors")
    expected = flow.log_prob(torch.from_numpy(archive["samples"]))
    np.testing.assert_allclose(archive["log_prob"], expected.numpy(), atol=1e-3)
    assert facts["n"] == 20
    assert run("sample", moons, "-n", 20, "-o", tmp_path / "s.csv") == 0
    table = np.loadtxt(tmp_path / "s.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table, archive["samples"], rtol=1e-6)
    assert (tmp_path / "s.csv").read_text().startswith("x0,x1\n")
    assert run("sample", moons, "-n", 20, "-o", tmp_path / "s.npy", "--seed", 1) == 0
    assert not np.array_equal(np.load(tmp_path / "s.npy"), archive["samples"])
    assert run("sample", moons, "-n", 20, "-o", tmp_path / "s.png") == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_the_solver_and_its_steps_are_honoured(moons, tmp_path, capsys):
    words = ("sample", moons, "-n", 5, "-o", tmp_path / "s.npz", "--json")
    assert run(*words, "--solver", "midpoint", "--steps", 10) == 0
    assert json.loads(capsys.readouterr().out)["nfe"] == 20
    assert run(*words, "--solver", "{name: rk4, steps: 3}") == 0
    assert json.loads(capsys.readouterr().out)["nfe"] == 12
    assert run(*words, "--steps", 10) == 2
    assert "--solver.steps: Dopri5 has no parameter 'steps'" in capsys.readouterr().err


def test_a_flow_is_where_the_device_says(moons, tmp_path, monkeypatch, capsys):
    """Without a GPU one sees where the flow is asked to be."""
    places, to = [], fmkit.Flow.to

    def moved(self, place):
        if isinstance(place, str):
            places.append(place)
        return to(self, "cpu" if isinstance(place, str) else place)

    monkeypatch.setattr(fmkit.Flow, "to", moved)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = ["sample", moons, "-n", 4, "-o", tmp_path / "x.npy"]
    for more, place in ([], "cuda"), (["--device", "cuda"], "cuda"), (["--device", "cpu"], "cpu"):
        assert run(*words, *more) == 0
        assert places.pop() == place
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*words) == 0
    assert run("evaluate", moons) == 0
    assert places == ["cpu", "cpu"]
    for name, said in ("gpu", "device is 'gpu', expected auto, cpu or cuda"), ("cuda", "torch finds no GPU here"):
        for command in words, ["evaluate", moons]:
            assert run(*command, "--device", name) == 2
            assert said in capsys.readouterr().err


def test_labels_and_guidance(tmp_path):
    words = ["data={name: moons, labels: true, n_train: 200, n_test: 50}", "field.cond_dropout=0.2", *QUICK]
    assert run("train", "moons", *words, "--out", tmp_path / "run", "--quiet") == 0
    out = tmp_path / "s.npy"
    assert run("sample", tmp_path / "run", "-n", 5, "--label", 1, "--guidance", 2.0, "-o", out) == 0
    flow = fmkit.Flow.load(tmp_path / "run/flow.safetensors")
    guided = fmkit.fields.ClassifierFree(flow.field, 2.0)
    flow = fmkit.Flow(flow.start, guided, flow.solver, flow.event_shape, flow.transform)
    expected = flow.sample(5, cond=1, generator=fmkit.training.stream(0, "samples"))
    np.testing.assert_array_equal(np.load(out), expected.numpy())


def test_guidance_of_other_kinds_and_its_interval(tmp_path, capsys):
    words = ["data={name: moons, labels: true, n_train: 200, n_test: 50}", "field.cond_dropout=0.2", *QUICK]
    for name, steps in (("run", 30), ("worse", 3)):
        assert run("train", "moons", *words, f"trainer.steps={steps}", "--out", tmp_path / name, "--quiet") == 0
    capsys.readouterr()
    out = tmp_path / "s.npy"
    spec = f"{{name: autoguidance, worse: {tmp_path / 'worse'}, scale: 2}}"
    for words in (
        ["--guidance", "{name: cfg-zero-star, scale: 2}", "--guidance-interval", "0.2,0.8"],
        ["--guidance", spec],
    ):
        assert run("sample", tmp_path / "run", "-n", 5, "--label", 1, *words, "-o", out) == 0
        assert np.isfinite(np.load(out)).all()
    for words, said in (
        (["--guidance-interval", "0.2,0.8"], "no guidance to limit"),
        (["--guidance", "2", "--guidance-interval", "0.8"], "expected two times"),
        (["--guidance", "2", "--guidance-interval", "0.8,0.2"], "start and end are 0.8 and 0.2"),
        (["--guidance", "[2]"], "expected a number"),
    ):
        assert run("sample", tmp_path / "run", "-n", 5, "--label", 1, *words, "-o", out) != 0
        assert said in capsys.readouterr().err


def test_evaluate_says_the_same_again(moons, capsys):
    before = json.loads((moons / "metrics.json").read_text())
    assert run("evaluate", moons, "--json") == 0
    after = json.loads(capsys.readouterr().out)
    assert after["nll"] == before["nll"]
    assert run("evaluate", moons) == 0
    assert f"{before['nll']:.3f} ±" in capsys.readouterr().out


def test_evaluate_takes_a_divergence_and_dequantizations(moons, capsys, monkeypatch):
    before = json.loads((moons / "metrics.json").read_text())
    assert run("evaluate", moons, "--divergence", "{name: hutchinson, probes: 50}", "--json") == 0
    after = json.loads(capsys.readouterr().out)
    assert after["nll"] != before["nll"]
    assert after["nll"] == pytest.approx(before["nll"], abs=0.1)
    asked = []
    monkeypatch.setattr("fmkit.evaluation.likelihood", lambda *a: asked.append(a) or {"nll": None})
    assert run("evaluate", moons, "-k", "3", "--divergence", "exact", "--json") == 0
    assert asked[0][3] == 3
    assert asked[0][4].exact


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("train", "digitz"), 2, "'digitz' is neither a file nor a recipe; did you mean 'digits'?"),
        (("train", "nowhere.yaml"), 2, "cannot read the configuration nowhere.yaml: No such file"),
        (("train", "moons", "trainer.stepz=3"), 2, "trainer.stepz: unknown key; did you mean 'steps'?"),
        (("train", "moons", "solver=dopri"), 2, "solver: no solver named 'dopri' is installed; did you mean 'dopri"),
        (("train", "moons", "objective=score", "coupling=ot"), 2, "is not the score"),
        (("sample", "nowhere"), 2, "there is no trained flow at nowhere"),
        (("sample", "nowhere", "-o", "s.jpg"), 2, "--out: got 's.jpg', expected a name ending in"),
        (("sample", "nowhere", "-o", "no/where/s.npz"), 2, "--out: there is no folder no/where"),
        (("sample", "nowhere", "-o", "s.png", "--log-prob"), 2, "--log-prob"),
        (("evaluate", "nowhere"), 2, "nowhere holds no run"),
        (("evaluate", "nowhere", "-k", "0"), 2, "Invalid value for '-k'"),
        (("plugins", "list", "pathz"), 2, "no kind of part is called 'pathz'; did you mean 'paths'?"),
        (("plugins", "info", "condott"), 2, "did you mean 'condot'?"),
        (("plugins", "info", "uniform"), 2, "write sources/uniform or "),
        (("config", "show", "moons", "seed=x"), 2, "seed: got 'x', expected a valid integer"),
        (("trian", "moons"), 2, "trian"),
        (("train",), 2, "Missing argument"),
        (("sample", "nowhere", "-n", "many"), 2, "Invalid value for '-n'"),
        (("sample", "nowhere", "--steeps", "3"), 2, "--steeps"),
    ],
)
def test_mistakes_give_one_line_and_code_2(words, code, message, capsys):
    assert run(*words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fmkit: ")


def test_debug_shows_the_traceback():
    with pytest.raises(fmkit.errors.ConfigError):
        main(["--debug", "train", "digitz"])


def test_a_failing_run_has_code_1(tmp_path, capsys):
    words = ["data={name: moons, n_train: 100, n_test: 20}", "trainer.lr=1e30", "trainer.steps=50", "field.width=8"]
    assert run("train", "moons", *words, "--out", tmp_path / "run", "--quiet") == 1
    assert re.search(r"the loss is (nan|inf) at step \d+ \(learning rate", capsys.readouterr().err)


def test_plugins_are_listed_and_described(capsys):
    assert run("plugins", "list", "paths", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"condot", "vp"} <= {r["name"] for r in rows if r["package"] == "fmkit"}
    assert run("plugins", "list") == 0
    assert re.search(r"^solvers +rk4 +fmkit +\d", capsys.readouterr().out, re.MULTILINE)
    assert run("plugins", "info", "vp") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("paths/vp  from fmkit")
    assert "beta_max: float = 20.0" in shown
    assert run("plugins", "info", "sources/uniform", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "sources"


def test_config_show_is_a_configuration(tmp_path, capsys):
    assert run("config", "show", "moons", "path=vp") == 0
    file = tmp_path / "shown.yaml"
    file.write_text(capsys.readouterr().out)
    assert run("config", "show", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == "vp"
    assert run("config", "schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "RunConfig"


def test_help_and_listing_answer_without_torch():
    program = (
        "import sys\nfrom fmkit.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as left:\n    assert left.code == 0, left.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    for words in (["--help"], ["train", "--help"], ["plugins", "list"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_broken_plugin_beside_spoils_nothing_and_is_named_when_asked_for(tmp_path, monkeypatch, capsys):
    info = tmp_path / "wreck_fm-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wreck-fm\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[fmkit.paths]\nwreck = wreck_fm:Wreck\n")
    (tmp_path / "wreck_fm.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fmkit.registry.refresh()
    try:
        assert run("plugins", "list") == 0
        assert "wreck" in capsys.readouterr().out
        assert run("plugins", "info", "wreck") == 0
        assert "broken: path 'wreck' of wreck-fm 0.3 cannot be imported" in capsys.readouterr().out
        assert run("config", "show", "moons") == 0
        assert run("config", "schema") == 0
        capsys.readouterr()
        assert run("train", "moons", "path=wreck", "--out", tmp_path / "run") == 2
        said = capsys.readouterr().err
        assert "path: path 'wreck' of wreck-fm 0.3" in said
        assert "a_library_that_is_not_there" in said
        assert said.count("\n") == 1
    finally:
        monkeypatch.undo()
        fmkit.registry.refresh()


def test_plugins_check_names_the_law(tmp_path, monkeypatch, capsys):
    assert run("plugins", "check", "condot", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["status"] != "failed" for row in rows)
    assert run("plugins", "check", "icfm", "sigma=0.3") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("fmkit/icfm (paths): ")
    assert run("plugins", "check", "icfm", "sigma=-1") == 2
    assert "sigma is -1" in capsys.readouterr().err
    info = tmp_path / "wrong_fm-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-fm\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[fmkit.paths]\noff = wrong_fm:Off\n")
    (tmp_path / "wrong_fm.py").write_text(
        "from fmkit.paths import CondOT, Coefficients\n"
        "class Off(CondOT):\n"
        "    def rates(self, t):\n"
        "        at = super().rates(t)\n"
        "        return Coefficients(1.01 * at.alpha, at.sigma)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    fmkit.registry.refresh()
    try:
        assert run("plugins", "check", "wrong-fm/off") == 1
        broken = [line for line in capsys.readouterr().out.splitlines() if " BROKEN: " in line]
        assert [line.split()[0] for line in broken] == ["path.velocity", "path.continuity", "path.rates"]
        assert "relative error 0.0" in broken[0]
        assert run("plugins", "check", "--package", "wrong-fm", "--json") == 1
        rows = json.loads(capsys.readouterr().out)
        assert {row["part"] for row in rows} == {"wrong-fm/off"}
        assert "path.velocity" in [row["id"] for row in rows if row["status"] == "failed"]
    finally:
        monkeypatch.undo()
        fmkit.registry.refresh()
