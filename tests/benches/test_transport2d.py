"""The cells of the transport table, at tiny size: figures by another hand, one at a time, killed and taken up again."""

import json

import ot
import pytest
import torch

import fmkit
from fmkit.benches import transport2d
from fmkit.benches.protocol import DATA, ROWS, SEEDS, Protocol, Row
from fmkit.benches.transport2d import Bench
from fmkit.errors import ArgumentError, ConfigError, FmkitError, SavedFileError
from fmkit.saving import read_tensors

TINY = Protocol(steps=12, points=64)


def w2(x, y):
    return ot.emd2(ot.unif(len(x)), ot.unif(len(y)), ot.dist(x.double().numpy(), y.double().numpy())) ** 0.5


def trained(folder):
    """The weights and the settings in the last checkpoint of a cell's training."""
    tensors, header = read_tensors(folder / "checkpoints" / "step_00000012.safetensors")
    layers = sorted({k.rpartition(".")[0] for k in tensors if k.startswith("network.")})
    return [(tensors[f"{k}.weight"], tensors[f"{k}.bias"]) for k in layers], header


def velocity(layers, t, x):
    h = torch.cat([torch.full((len(x), 1), t), x], 1)
    for k, (weight, bias) in enumerate(layers):
        h = h @ weight.T + bias
        if k < len(layers) - 1:
            h = torch.selu(h)
    return h


@pytest.mark.parametrize(
    ("row", "data"), [("fm", "moons"), ("ot-cfm", "8gaussians"), ("semidiscrete", "moons"), ("sf2m-exact", "moons")]
)
def test_a_cell_by_another_hand(row, data, tmp_path):
    """The checkpoint's weights, a loop of Euler steps and POT."""
    result = Bench(tmp_path, TINY).cell(row, data, 7)
    layers, header = trained(tmp_path / "training" / f"{data}_{row}_7_12x64")
    assert [tuple(w.shape) for w, _ in layers] == [(64, 3), (64, 64), (64, 64), (2, 64)]
    halves = {"even": True} if data == "moons" else {}
    test = fmkit.registry.load("fmkit.datasets", data)(n_train=64, n_test=64, **halves).load(7).test
    x0 = torch.randn(64, 2, generator=fmkit.training.stream(7, "transport2d-source"))
    x, energy = x0, 0.0
    for k in range(100):
        v = velocity(layers, k / 100, x)
        x, energy = x + v / 100, energy + v.double().square().sum(1).mean().item() / 100
    # the bridge's interval ends 1e-5 before either end
    assert result["w2"] == pytest.approx(w2(x, test), rel=2e-3 if row == "sf2m-exact" else 1e-5)
    least = w2(x0, test) ** 2
    assert result["npe"] == pytest.approx(abs(energy - least) / least, rel=1e-3)
    assert result["protocol"] == {"steps": 12, "points": 64}
    told = {k: header["settings"][k] for k in ("batch_size", "lr", "weight_decay", "ema", "seed", "decay", "clip")}
    assert told == {
        "batch_size": 512,
        "lr": 1e-3,
        "weight_decay": 1e-5,
        "ema": 0.0,
        "seed": 7,
        "decay": "constant",
        "clip": None,
    }


def test_the_rows_are_the_published_methods():
    def at_the_end(row):
        path = fmkit.specs.build(fmkit.paths.ProbabilityPath, ROWS[row].path, "path")
        c = path.coefficients(torch.tensor([0.5, 1.0], dtype=torch.float64).clamp(*path.interval))
        return [[round(float(v), 2) for v in part] for part in c if part is not None]

    assert at_the_end("fm")[:2] == [[0.5, 1.0], [0.55, 0.1]]  # x_t = t x1 + (1 - 0.9 t) x0
    assert (
        at_the_end("i-cfm")
        == at_the_end("ot-cfm")
        == at_the_end("semidiscrete")
        == [[0.5, 1.0], [0.5, 0.0], [0.1, 0.1]]
    )
    assert at_the_end("sf2m-exact") == [[0.5, 1.0], [0.5, 0.0], [0.05, 0.0]]
    assert [ROWS[r].coupling for r in ("fm", "i-cfm", "ot-cfm", "sf2m-exact")] == ["independent"] * 2 + ["ot"] * 2
    assert Protocol() == Protocol(20_000, 10_000)
    assert SEEDS == (42, 43, 44, 45, 46)


def test_couplings_differ_where_only_they_do(tmp_path):
    bench = Bench(tmp_path, TINY)
    assert bench.cell("i-cfm", "moons", 0)["energy"] != bench.cell("ot-cfm", "moons", 0)["energy"]


def test_one_cell_at_a_time(tmp_path):
    bench = Bench(tmp_path, TINY)
    result = bench.cell("fm", "moons", 3)
    assert {p.name for p in tmp_path.iterdir()} == {"moons_fm_3.json", "moons_reference_3.json", "training"}
    assert json.loads((tmp_path / "moons_fm_3.json").read_text()) == result
    assert bench.results() == [result, bench.reference("moons", 3)]
    (tmp_path / "moons_reference_3.json").unlink()  # what was lost is measured again, and no more
    assert bench.cell("fm", "moons", 3) == result
    assert len(bench.results()) == 2


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    result = Bench(tmp_path, TINY).cell("fm", "moons", 3)
    monkeypatch.setattr(Bench, "_train", None)
    monkeypatch.setattr(Bench, "_refer", None)
    assert Bench(tmp_path, TINY).cell("fm", "moons", 3) == result


def test_moons_have_equal_halves_and_results_of_others_are_not_mixed_in(tmp_path):
    moons = transport2d.dataset("moons", TINY)
    assert (moons.even, moons.n_train, moons.n_test) == (True, 64, 64)
    result = Bench(tmp_path, TINY).cell("fm", "moons", 3)
    assert result["drawn"] == {"even": True}
    del result["drawn"]
    (tmp_path / "moons_fm_3.json").write_text(json.dumps(result))
    with pytest.raises(SavedFileError, match="drawn by .*choose another folder"):
        Bench(tmp_path, TINY).cell("fm", "moons", 3)
    assert "drawn" not in Bench(tmp_path, TINY).reference("8gaussians", 3)


class Killer(fmkit.training.Callback):
    def on_step(self, run):
        if run.step == 8:
            raise KeyboardInterrupt


class Witness(fmkit.training.Callback):
    seen = ()

    def on_start(self, run):
        Witness.seen = (*Witness.seen, run.step)


def test_a_killed_cell_goes_on_from_its_checkpoint_to_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(transport2d, "CHECKPOINT_EVERY", 5)
    with pytest.raises(KeyboardInterrupt):
        Bench(tmp_path / "cut", TINY, lambda: [Killer()]).cell("ot-cfm", "moons", 0)
    assert not (tmp_path / "cut" / "moons_ot-cfm_0.json").exists()
    monkeypatch.setattr(Witness, "seen", ())
    cut = Bench(tmp_path / "cut", TINY, lambda: [Witness()]).cell("ot-cfm", "moons", 0)
    assert Witness.seen == (5,)
    whole = Bench(tmp_path / "whole", TINY).cell("ot-cfm", "moons", 0)
    assert cut["training_seconds"] is None
    assert whole["training_seconds"] > 0
    for key in ("w2", "npe", "energy", "curvature"):
        assert cut[key] == whole[key]


def test_a_training_killed_before_its_first_checkpoint_begins_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Bench(tmp_path / "cut", TINY, lambda: [Killer()]).cell("fm", "moons", 0)
    cut, whole = (Bench(tmp_path / name, TINY).cell("fm", "moons", 0) for name in ("cut", "whole"))
    assert cut["w2"] == whole["w2"]


def test_protocols_are_not_mixed(tmp_path):
    Bench(tmp_path, TINY).cell("fm", "moons", 0)
    for other in (Protocol(), Protocol(12, 65), Protocol(13, 64)):
        with pytest.raises(SavedFileError, match=r"measured with 12 steps and 64 points, and this is \d+ steps and"):
            Bench(tmp_path, other).cell("fm", "moons", 0)
        with pytest.raises(SavedFileError, match="choose another folder"):
            Bench(tmp_path, other).results()
    assert not Protocol(12, 64).full
    assert not Protocol(points=9_999).full
    assert Protocol().full


def test_the_training_of_another_protocol_is_not_taken_up(tmp_path, monkeypatch):
    """Killed when the training was done; then asked for more steps on other points."""
    monkeypatch.setattr(transport2d, "_w2", lambda x, y: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Bench(tmp_path, TINY).cell("fm", "moons", 0)
    monkeypatch.undo()
    cell = Bench(tmp_path, Protocol(12, 32)).cell("fm", "moons", 0)
    assert cell["w2"] == Bench(tmp_path / "other", Protocol(12, 32)).cell("fm", "moons", 0)["w2"]


def test_the_floor_is_what_two_test_sets_have_between_each_other(tmp_path):
    n = 100
    floors = [Bench(tmp_path, Protocol(1, n)).reference("8gaussians", seed)["floor"] for seed in range(6)]
    generator, ring = torch.Generator().manual_seed(0), fmkit.data.EightGaussians()
    expected = torch.tensor([w2(ring.sample(n, generator), ring.sample(n, generator)) for _ in range(30)])
    assert len(set(floors)) == 6
    assert sum(floors) / 6 == pytest.approx(expected.mean().item(), abs=5 * expected.std().item() / 6**0.5)


def test_the_distance_from_the_source_is_that_of_gaussians(tmp_path, monkeypatch):
    """W2²(N(0, I), N(m, s² I)) = |m|² + 2 (s - 1)², here with n = 600, whose bias is within the tolerance."""

    class Far(fmkit.data.GaussianMixture):
        def __init__(self, **counts):
            super().__init__(means=[[6.0, 8.0]], std=2.0, **counts)

    monkeypatch.setattr(transport2d, "dataset", lambda name, protocol: Far(n_train=600, n_test=600))
    found = Bench(tmp_path, Protocol(1, 600)).reference("moons", 0)["source_w2"]
    assert found**2 == pytest.approx(102, rel=0.05)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (("fn", "moons", 0), "row is 'fn', which the table has not; did you mean 'fm'?"),
        (("fm", "moon", 0), "data: no dataset named 'moon' is installed; did you mean 'moons'?"),
        (("fm", "digits", 0), "data.n_train: Digits has no parameter 'n_train'"),
        (("fm", "moons", -1), "seed is -1, expected a whole number of at least 0"),
        (("fm", "moons", True), "seed is True"),
    ],
)
def test_what_is_no_cell_is_refused(cell, message, tmp_path):
    with pytest.raises(FmkitError) as raised:
        Bench(tmp_path, TINY).cell(*cell)
    assert message in str(raised.value)


def test_a_row_of_ones_own_and_other_data(tmp_path):
    """The bridge without a bridge's width, under exact pairs, is OT-CFM without its noise: the same training."""
    own = {
        "straight": Row("straight", {"name": "condot"}, "ot"),
        "thin": Row("thin", {"name": "icfm", "sigma": 0.0}, {"name": "ot"}),
    }
    bench = Bench(tmp_path, TINY, rows=own)
    a, b = (bench.cell(name, "scurve", 1) for name in own)
    assert a["energy"] == pytest.approx(b["energy"], rel=1e-4)
    assert b["path"] == {"name": "icfm", "sigma": 0.0}
    assert [r["row"] for r in Bench(tmp_path, TINY).results()] == ["reference", "straight", "thin"]


def test_a_row_that_was_something_else_is_refused(tmp_path):
    Bench(tmp_path, TINY, rows={"mine": Row("mine", "condot")}).cell("mine", "moons", 0)
    with pytest.raises(SavedFileError, match="was measured with path condot and coupling independent, and this is vp"):
        Bench(tmp_path, TINY, rows={"mine": Row("mine", "vp")}).cell("mine", "moons", 0)


def test_rows_are_looked_at_before_they_run(tmp_path):
    def refused(name, row, said, kind=ConfigError):
        with pytest.raises(kind, match=said):
            Bench(tmp_path, TINY, rows={name: row}).cell(name, "moons", 0)

    refused("mine", Row("mine", "condott"), "path: no path named 'condott' is installed; did you mean 'condot'")
    refused("mine", Row("mine", coupling={"name": "ot", "x": 1}), "coupling.x: OptimalTransport has no parameter")
    for name in ("Mine", "a_b", "../x", "", "reference"):
        refused(name, Row("mine"), "expected small letters, digits and hyphens", ArgumentError)
    assert not list(tmp_path.iterdir())


def test_other_mistakes_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="steps is 0"):
        Protocol(steps=0)
    with pytest.raises(ArgumentError, match="points is 1, expected a whole number of at least 2"):
        Protocol(points=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SavedFileError, match="cannot make the folder"):
        Bench(tmp_path / "file")
    for text in ("{", "[]", "{}", '{"protocol": {"stepz": 1}}', "\xff"):
        (tmp_path / "moons_fm_0.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(SavedFileError, match=r"moons_fm_0\.json is no result of this table"):
            Bench(tmp_path, TINY).cell("fm", "moons", 0)
    assert set(DATA) == {"8gaussians", "moons"}
