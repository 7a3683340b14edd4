"""A flow in a file: the same to the last bit, and nothing in the file is run, imported or guessed."""

import json
import os
import sys

import pytest
import safetensors.torch
import torch

from fmkit import specs
from fmkit.divergence import HutchinsonDivergence
from fmkit.errors import SavedFileError
from fmkit.fields import MLP, ClassifierFree, ModuleField, PredictionField, VectorField
from fmkit.flow import Flow
from fmkit.paths import CondOT, VariancePreserving
from fmkit.saving import read_tensors, write_tensors
from fmkit.solvers import AB3, EulerMaruyama, Heun, ListedGrid, ShiftedGrid
from fmkit.sources import Convolved, Empirical, Gaussian, Scaled, Uniform
from fmkit.transforms import Affine
from tests.memory import little_memory


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.register_buffer("calls", torch.tensor(7))

    def forward(self, t, x):
        return self.layer(torch.cat([x, t[:, None].to(x.dtype)], 1))


class Swirl(VectorField):
    """A field that no package registers."""

    def __init__(self, rate: float, centre: torch.Tensor):
        super().__init__()
        self.rate = rate
        self.register_buffer("centre", centre)
        self.weight = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, t, x, cond=None):
        return self.weight * self.rate * (x - self.centre).flip(-1)


def trained_mlp(**more):
    torch.manual_seed(0)
    field = MLP(2, width=8, depth=2, **more)
    torch.nn.init.normal_(field.last.weight)
    return field


def flows():
    torch.manual_seed(0)
    path = VariancePreserving(0.2, 15.0)
    return {
        "plain": Flow(Gaussian(), trained_mlp(), event_shape=2),
        "nested": Flow(
            path.start(Gaussian()),
            ClassifierFree(PredictionField(trained_mlp(classes=3), path, "noise", (0.01, 0.9), True), 2.0),
            AB3(7, ListedGrid([0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.9, 1.0])),
            (2,),
            Affine(torch.tensor([1.0, -2.0]), torch.tensor([0.3, 1 / 3], dtype=torch.float64)),
            HutchinsonDivergence(2, "gaussian"),
        ),
        "sde": Flow(Scaled(Uniform(), 2.0), trained_mlp(), EulerMaruyama(5, 0.5, ShiftedGrid(2.0)), 2),
        "data": Flow(Convolved(Empirical(torch.randn(50, 2)), 0.1), trained_mlp(), Heun(4), 2),
        "double": Flow(Gaussian(), trained_mlp().double(), Heun(4), 2, Affine(0.1, 3.0)),
    }


@pytest.mark.filterwarnings("ignore:log-densities by")  # the same bits matter here, and four steps are quick
@pytest.mark.parametrize("name", ["plain", "nested", "data", "double"])
def test_a_loaded_flow_is_the_same_to_the_last_bit(name, tmp_path, seeded):
    flow = flows()[name]
    flow.save(tmp_path / "a.flow")
    loaded = Flow.load(tmp_path / "a.flow")
    cond = torch.tensor([0, 1, 2, 0]) if name == "nested" else None
    assert torch.equal(loaded.sample(4, cond, generator=seeded(0)), flow.sample(4, cond, generator=seeded(0)))
    if name != "data":
        x = flow.sample(4, cond, generator=seeded(1))
        both = [f.log_prob(x, cond, generator=seeded(2)) for f in (flow, loaded)]
        assert torch.equal(*both)
        assert torch.isfinite(both[0]).all()
    written = [json.dumps(specs.describe(f, {})) for f in (flow, loaded)]
    assert written[0] == written[1]
    assert loaded.interval == flow.interval
    for key, value in flow.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
        assert loaded.state_dict()[key].dtype == value.dtype


def test_saving_twice_gives_the_same_bytes(tmp_path):
    flow = flows()["nested"]
    flow.save(tmp_path / "a.flow")
    Flow.load(tmp_path / "a.flow").save(tmp_path / "b.flow")
    assert (tmp_path / "a.flow").read_bytes() == (tmp_path / "b.flow").read_bytes()


def test_every_part_comes_back(tmp_path):
    for name, flow in flows().items():
        flow.save(tmp_path / name)
        loaded = Flow.load(tmp_path / name)
        for ours, theirs in zip(flow.modules(), loaded.modules(), strict=True):
            assert type(ours) is type(theirs)
            if hasattr(ours, "arguments"):
                assert ours.arguments.keys() == theirs.arguments.keys()


def test_a_users_network_is_handed_over(tmp_path, seeded):
    torch.manual_seed(3)
    flow = Flow(Gaussian(), PredictionField(ModuleField(Net()), CondOT()), Heun(5), 2)
    flow.save(tmp_path / "a.flow")
    with pytest.raises(SavedFileError, match=r"holds the weights of .*Net, not its code; pass one with using"):
        Flow.load(tmp_path / "a.flow")
    torch.manual_seed(4)
    loaded = Flow.load(tmp_path / "a.flow", using=[Net()])
    assert torch.equal(loaded.sample(4, generator=seeded(0)), flow.sample(4, generator=seeded(0)))


def test_a_network_of_another_shape_does_not_fit(tmp_path):
    Flow(Gaussian(), ModuleField(Net()), Heun(5), 2).save(tmp_path / "a.flow")
    other = Net()
    other.layer = torch.nn.Linear(4, 2)
    with pytest.raises(SavedFileError, match="does not fit its own description"):
        Flow.load(tmp_path / "a.flow", using=[other])


def test_two_networks_of_one_class_stay_two(tmp_path, seeded):
    """Guidance by a weaker copy holds two networks of one class."""

    class Both(VectorField):
        def __init__(self, strong: VectorField, weak: VectorField):
            super().__init__()
            self.strong, self.weak = strong, weak

        def forward(self, t, x, cond=None):
            return 2 * self.strong(t, x) - self.weak(t, x)

    torch.manual_seed(0)
    flow = Flow(Gaussian(), Both(ModuleField(Net()), ModuleField(Net())), Heun(5), 2)
    flow.save(tmp_path / "a.flow")
    loaded = Flow.load(tmp_path / "a.flow", using=[Both, Net(), Net()])
    assert torch.equal(loaded.sample(4, generator=seeded(0)), flow.sample(4, generator=seeded(0)))


def test_an_unregistered_part_is_handed_over(tmp_path, seeded):
    flow = Flow(Gaussian(), Swirl(0.7, torch.tensor([0.1, 0.2])), Heun(5), 2)
    flow.field.weight.data.fill_(2.25)
    flow.save(tmp_path / "a.flow")
    with pytest.raises(SavedFileError, match=r"Swirl is no registered part; hand its class over with using"):
        Flow.load(tmp_path / "a.flow")
    loaded = Flow.load(tmp_path / "a.flow", using=[Swirl])
    assert torch.equal(loaded.sample(4, generator=seeded(0)), flow.sample(4, generator=seeded(0)))
    assert loaded.field.rate == 0.7


def test_a_loaded_flow_is_ready_to_use(tmp_path):
    flow = flows()["plain"]
    flow.train()
    flow.save(tmp_path / "a.flow")
    loaded = Flow.load(tmp_path / "a.flow")
    assert not loaded.training
    assert flow.training


def test_what_cannot_be_written_down_is_refused(tmp_path):
    flow = Flow(Gaussian(), trained_mlp(), EulerMaruyama(5, lambda t: t), 2)
    with pytest.raises(SavedFileError, match=r"solver\.lam is a function, which cannot be"):
        flow.save(tmp_path / "a.flow")
    assert os.listdir(tmp_path) == []


def header_of(path):
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fmkit"])


def rewritten(path, change):
    """The file with its header changed, its tensors kept."""
    tensors, header = read_tensors(path)
    header = json.loads(json.dumps(header))
    header = change(header) or header
    path.write_bytes(safetensors.torch.save(tensors, {"fmkit": json.dumps(header)}))


def put(*keys, value):
    def change(header):
        place = header
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


FOREIGN = {
    "another format": (put("format", value=99), "format 99; fmkit .* reads format 1"),
    "no format": (lambda h: {"flow": h["flow"]}, "has format None"),
    "no mapping": (lambda h: [1, 2], r"has format \[1, 2\]"),
    "a checkpoint": (put("kind", value="run"), "holds a run, expected a flow"),
    "no flow": (lambda h: {k: v for k, v in h.items() if k != "flow"}, "flow"),
    "flow of another type": (put("flow", value=[1]), "flow"),
    "a module's function": (put("flow", "solver", value={"name": "os/system"}), "os/system"),
    "a dotted path": (put("flow", "solver", value={"name": "@os:system"}), "os:system is no registered part"),
    "another kind of part": (put("flow", "solver", value="gaussian"), "no solvers? named 'gaussian'"),
    "an uninstalled part": (put("flow", "solver", value="antigravity"), "no solvers? named 'antigravity'"),
    "an unknown argument": (
        put("flow", "solver", value={"name": "heun", "stps": 3}),
        r"flow\.solver\.stps.*did you mean 'steps'",
    ),
    "an argument of another type": (
        put("flow", "solver", value={"name": "heun", "steps": "3"}),
        r"flow\.solver\.steps: got '3'",
    ),
    "an argument out of range": (
        put("flow", "solver", value={"name": "heun", "steps": 0}),
        r"flow\.solver: steps is 0",
    ),
    "a name that is no text": (put("flow", "solver", value={"name": 3}), r"flow\.solver: got"),
    "a missing tensor": (
        put("flow", "transform", value={"name": "affine", "shift": {"tensor": "x"}}),
        "the tensor 'x' is missing",
    ),
    "a tensor key of another type": (
        put("flow", "transform", value={"name": "affine", "shift": {"tensor": [1]}}),
        "flow",
    ),
    "a module label of another type": (put("flow", "field", value={"module": 3}), "flow"),
    "a module in a part's place": (put("flow", "field", value={"module": "@os:system"}), "os:system"),
    "a missing argument": (put("flow", "field", value="mlp"), r"flow\.field\.event_shape: missing"),
    "another architecture": (put("flow", "field", "width", value=16), "does not fit its own description"),
}


@pytest.mark.parametrize("mistake", FOREIGN)
def test_files_that_say_what_they_should_not_are_refused(mistake, tmp_path):
    change, message = FOREIGN[mistake]
    path = tmp_path / "a.flow"
    flows()["plain"].save(path)
    rewritten(path, change)
    with pytest.raises(SavedFileError, match=message):
        Flow.load(path)


def test_nothing_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "fmkit_trap.py").write_text("raise RuntimeError('imported')\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "a.flow"
    for name in ("fmkit_trap:Trap", "@fmkit_trap:Trap", "fmkit_trap/Trap", "fmkit_trap.Trap"):
        flows()["plain"].save(path)
        rewritten(path, put("flow", "solver", value={"name": name}))
        with pytest.raises(SavedFileError, match="fmkit_trap"):
            Flow.load(path)
    assert "fmkit_trap" not in sys.modules


def test_no_pickle_is_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"x": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(SavedFileError, match="damaged or no safetensors file"):
        Flow.load(tmp_path / "a.pt")
    assert not (tmp_path / "exploded").exists()


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.flow"
    flows()["plain"].save(path)
    whole = path.read_bytes()
    for n in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(SavedFileError, match="damaged or no safetensors file"):
            Flow.load(path)
    path.write_bytes(b"\xff" * 200)
    with pytest.raises(SavedFileError, match="damaged"):
        Flow.load(path)
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))
    with pytest.raises(SavedFileError, match="is a safetensors file, and not one that fmkit wrote"):
        Flow.load(path)
    with pytest.raises(SavedFileError, match="there is no file"):
        Flow.load(tmp_path / "none.flow")
    with pytest.raises(SavedFileError, match="there is no file"):
        Flow.load(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("width", 10**6), ("width", 10**12), ("depth", 10**8)])
def test_a_file_that_describes_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path, key, value):
    path = tmp_path / "a.flow"
    flows()["plain"].save(path)
    rewritten(path, put("flow", "field", key, value=value))
    with little_memory(2**29), pytest.raises(SavedFileError, match="describes a flow of far more than the"):
        Flow.load(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.flow"
    flows()["plain"].save(path)
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SavedFileError, match=r"cannot write .*a\.flow: No space left on device"):
        flows()["nested"].save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.flow"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.flow"

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        flows()["plain"].save(path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(SavedFileError, match=r"cannot write .*: No such file or directory"):
        flows()["plain"].save(tmp_path / "none" / "a.flow")


def test_tensors_are_kept_exactly(tmp_path):
    tensors = {
        "half": torch.randn(3).bfloat16(),
        "ints": torch.tensor([2**40, -1]),
        "strided": torch.randn(4, 4).T[1:],
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "a", tensors | {"alias": tensors["half"]}, {"format": 1, "x": [1, {"y": None}]})
    read, header = read_tensors(tmp_path / "a")
    assert header == {"format": 1, "x": [1, {"y": None}]}
    for key, value in tensors.items():
        assert torch.equal(read[key], value)
        assert read[key].dtype == value.dtype


def test_a_field_given_as_a_module_comes_back(tmp_path, seeded):
    flow = Flow(Gaussian(), ModuleField(trained_mlp()), Heun(5), 2)
    flow.save(tmp_path / "a.flow")
    loaded = Flow.load(tmp_path / "a.flow")
    assert torch.equal(loaded.sample(4, generator=seeded(0)), flow.sample(4, generator=seeded(0)))


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.flow"
    flows()["plain"].save(path)
    before = path.read_bytes()

    def refuse(*arguments):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SavedFileError, match="Permission denied"):
        flows()["nested"].save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.flow"]


@pytest.mark.parametrize("change", ["missing", "foreign", "another shape"])
def test_weights_that_are_not_the_flows_are_refused(change, tmp_path):
    path = tmp_path / "a.flow"
    flows()["plain"].save(path)
    tensors, header = read_tensors(path)
    name = next(key for key in tensors if key.startswith("state."))
    if change == "missing":
        del tensors[name]
    elif change == "foreign":
        tensors["state.stranger"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(2, 3, 4)
    write_tensors(path, tensors, header)
    with pytest.raises(SavedFileError, match="does not fit its own description"):
        Flow.load(path)
