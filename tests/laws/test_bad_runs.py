"""Bad inputs to what surrounds a run: registry, recipes, parts as data, configuration, evaluation, files."""

import copy
import dataclasses
import datetime

import pytest
import torch

import fmkit
from fmkit import (
    config,
    data,
    evaluation,
    fields,
    objectives,
    paths,
    recipes,
    registry,
    solvers,
    sources,
    specs,
)
from fmkit.benches import protocol
from fmkit.errors import FmkitError, SavedFileError
from fmkit.saving import read_tensors, write_tensors
from tests.laws.sweep import NAN, NO_COUNT, NO_EVENTS, NO_PART, Sweep, hold, spoilt, without, x

CASES = Sweep()
case = CASES.case

NO_SEED = without(NO_COUNT, "zero") | {"None": None}
NO_TEXT = {"None": None, "number": 3, "bytes": b"a", "list": ["a"], "a class": paths.CondOT}
NO_NAME = NO_TEXT | {"empty": "", "unknown": "zz", "a slash": "/", "another package": "zz/condot", "zero byte": "\0"}

# -- registry and recipes ---------------------------------------------------------------------------------------------

for call in (registry.find, registry.load):
    case(
        f"registry.{call.__name__}",
        call,
        lambda: {"group": "fmkit.paths", "name": "condot"},
        group=NO_TEXT | {"unknown": "fmkit.zz", "short": "paths"},
        name=NO_NAME,
    )
case("registry.entries", registry.entries, lambda: {"group": "fmkit.paths"}, group=without(NO_TEXT, "None"))
case("registry.name_of", registry.name_of, lambda: {"cls": paths.CondOT}, cls={"None": None, "text": "vp", "list": [1]})
case("recipes.find", recipes.find, lambda: {"name": "moons"}, name=NO_NAME)
case("recipes.standard", recipes.standard, lambda: {"data": "moons"}, data=NO_NAME)

# -- parts as plain data ----------------------------------------------------------------------------------------------

case(
    "specs.build",
    specs.build,
    lambda: {"base": paths.ProbabilityPath, "spec": {"name": "vp", "beta_max": 9.0}, "where": "path"},
    base={"None": None, "text": "path", "no part": int, "no kind": fmkit.Part, "another": sources.Source},
    spec={
        "None": None,
        "number": 3,
        "list": ["vp"],
        "empty": "",
        "unknown": "zz",
        "nameless": {},
        "numbered": {"name": 3},
        "unknown key": {"name": "vp", "zz": 1},
        "a numbered key": {"name": "vp", 3: 1},
        "a class": paths.CondOT,
        "another part": sources.Gaussian(),
        "what is not registered": "@os:system",
    },
)
NUMBERS = {"text": "a", "True": True, "None": None, "list": [1], "mapping": {}, "out of range": -1.0, "nan": NAN}
ROWS = {"text": "a", "number": 3, "none": [], "ragged": [[1.0], [1.0, 2.0]], "texts": [["a"]], "holes": [[None]]}
TENSORS = {"a lost tensor": {"tensor": "a"}, "no name of a tensor": {"tensor": ["a"]}, "mapping": {"a": 1}}
NETWORK = {"name": "mlp", "event_shape": 2}
for kind, name, good, bad in (
    (paths.ProbabilityPath, "vp", {"beta_max": 9.0}, NUMBERS | TENSORS),
    (solvers.Solver, "euler", {"steps": 3}, NUMBERS | {"half": 2.5, "2.0": 2.0}),
    (solvers.Solver, "euler", {"grid": "uniform"}, {"number": 3, "list": [1], "another kind": "vp", "unknown": "zz"}),
    (solvers.TimeGrid, "listed", {"positions": [0, 0.5, 1]}, ROWS | {"short": [0, 0.5]}),
    (sources.Source, "empirical", {"data": [[1.0], [2.0]]}, ROWS | TENSORS | {"nan": [[NAN]]}),
    (sources.Source, "scaled", {"source": "uniform", "scale": 2.0}, {"number": 3, "another kind": "vp", "None": None}),
    (fields.VectorField, "mlp", {"event_shape": [2]}, {"text": "a", "none": [], "half": [2.5], "True": [True]}),
    (fields.VectorField, "prediction", {"network": NETWORK, "path": "vp"}, {"number": 3, "another kind": "vp"}),
    (fields.VectorField, "module", {"module": NETWORK}, {"no module": {"module": ["a"]}, "lost": {"module": "@a:B"}}),
    (fields.VectorField, "mixture-oracle", {"means": [[1.0]], "path": "vp"}, ROWS | TENSORS),
    (data.DataSet, "rings", {"radii": [1.0]}, {"text": "ab", "none": [], "negative": [-1.0], "nested": [["a"]]}),
    (objectives.TimeSampler, "logit-normal", {"std": 1.0}, NUMBERS),
):
    key = next(iter(good))
    case(
        f"specs.build {name}: {key}",
        lambda kind=kind, name=name, **given: specs.build(kind, {"name": name, **given}, "it"),
        good.copy,
        **{key: bad},
    )
case("specs.describe", specs.describe, lambda: {"part": paths.CondOT()}, part={"a module": torch.nn.ReLU(), **NO_TEXT})

# -- configuration ----------------------------------------------------------------------------------------------------


def validated(**values):
    return config.validate(config.Layers(values=values))


for made in (config.RunConfig, validated):
    case(
        made.__name__,
        made,
        lambda: {"data": "moons"},
        data={"None": None, "number": 3, "a date": datetime.date(2020, 1, 1), "an object": {"name": object()}},
        path={"list": ["vp"], "a numbered key": {"name": "vp", 3: 4}, "a set": {"name": {"vp"}}},
        seed=without(NO_COUNT, "zero", "two") | {"None": None},
        callbacks={"text": "progress", "None": None, "number": 3, "mapping": {}, "numbers": [3]},
        trainer={"text": "a", "None": None, "list": [1], "a numbered key": {3: 4}},
        zz={"unknown": 1},
    )
NO_FILE = {"number": 3, "a folder": "/", "missing": "nowhere.yaml", "zero byte": "a\0b", "vast": "x" * 5000}
case("read_word", config.read_word, lambda: {"word": "a=3"}, word=NO_TEXT | {"empty": "", "no =": "a", "no key": ".=3"})
case(
    "load_layers",
    config.load_layers,
    lambda: {"base": {"data": "moons"}, "file": None, "words": ["seed=3"]},
    base={"None": None, "text": "a", "list": [1]},
    file=NO_FILE,
    words={"None": None, "number": 3, "numbers": [3], "text": "seed=3"},
)
NO_LAYERS = NO_TEXT | {"mapping": {"data": "moons"}}
case("validate", config.validate, lambda: {"layers": config.Layers(values={"data": "moons"})}, layers=NO_LAYERS)
case("assemble", config.assemble, lambda: {"layers": config.Layers(values={"data": "moons"})}, layers=NO_LAYERS)
wrong = config.RunConfig(data="moons", trainer={"steps": "a"})
for call in (config.settings_of, config.dump):
    good = {"config": config.RunConfig(data="moons")}
    case(call.__name__, call, good.copy, config=NO_LAYERS | {"unsound": wrong})


FILES = {
    "empty": "",
    "a list": "- 1\n",
    "open": "data: [",
    "no text": b"\xff\xfe\x00",
    "tabs": "data:\tmoons\n\tx: 1",
    "twice": "data: moons\ndata: digits\n",
    "two documents": "data: moons\n---\ndata: digits\n",
    "code": "data: !!python/object:os.system x\n",
    "a tag": "data: !foo x\n",
    "a set": "data: !!set {moons}\n",
    "bytes": "data: !!binary abcd\n",
    "a date": "data: 2020-01-01\n",
    "a date inside": "data: {name: moons, noise: 2020-01-01}\n",
    "a numbered key": "3: 4\ndata: moons\n",
    "a listed key": "? [1, 2]\n: 3\n",
    "zero byte": "data: mo\0ons\n",
    "inside itself": "data: &a {name: moons, noise: *a}\n",
    "listed inside itself": "callbacks: &a [*a]\ndata: moons\n",
    "deep": f"data: {'[' * 2000}{']' * 2000}\n",
    "rather deep": f"data: {'[' * 60}{']' * 60}\n",
    "no merge": "<<: 3\ndata: moons\n",
}


@pytest.mark.parametrize("content", [pytest.param(v, id=k) for k, v in FILES.items()])
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "it.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FmkitError) as caught:
        config.validate(config.load_layers({}, file, []))
    assert len(str(caught.value)) > 20


# -- evaluation -------------------------------------------------------------------------------------------------------


def flow():
    oracle = fmkit.MixtureOracle(paths.CondOT(), means=[[-1.0, 0.0], [1.0, 0.5]], std=0.5)
    return fmkit.Flow(sources.Gaussian(), oracle, solvers.Euler(2), event_shape=2)


def split(**changed):
    return dataclasses.replace(data.Moons(n_train=20, n_test=12).load(0), **changed)


NO_SPLIT = {
    "None": None,
    "text": "a",
    "data": data.Data(x()),
    "a tensor": x(),
    "not finite": split(test=spoilt(x(12), NAN)),
    "other events": split(test=x(12, d=3)),
    "one sample": split(test=x(1)),
}
NO_FLOW = NO_PART | {"its class": fmkit.Flow}
NO_DIVERGENCE = {"a name": "exact", "a class": fmkit.ExactDivergence, "another kind": paths.CondOT()}
case(
    "evaluate",
    evaluation.evaluate,
    lambda: {"flow": flow(), "split": split(), "seed": 0, "samples": 10},
    flow=NO_FLOW,
    split=NO_SPLIT,
    seed=NO_SEED,
    samples=NO_COUNT | {"one": 1},
    dequantizations=NO_COUNT,
    divergence=NO_DIVERGENCE,
)
case(
    "likelihood",
    evaluation.likelihood,
    lambda: {"flow": flow(), "split": split(), "seed": 0},
    flow=NO_FLOW,
    split=NO_SPLIT,
    seed=NO_SEED,
    divergence=NO_DIVERGENCE,
)
case(
    "quality",
    evaluation.quality,
    lambda: {"x": x(12), "split": split(), "seed": 0},
    x=NO_EVENTS | {"one": x(1)},
    split=NO_SPLIT,
    seed=NO_SEED,
)
case(
    "ways",
    evaluation.ways,
    lambda: {"flow": flow(), "split": split(), "seed": 0, "samples": 10},
    flow=NO_FLOW,
    split=NO_SPLIT,
    seed=NO_SEED,
    samples=NO_COUNT | {"one": 1},
)
labels = torch.zeros(12, dtype=torch.int64)
case(
    "conditions",
    evaluation.conditions,
    lambda: {"split": split(test_cond=labels), "n": 4, "seed": 0},
    split={"None": None, "text": "a"},
    n=NO_COUNT | {"None": None},
    seed=NO_SEED,
)
case("Split: test_cond", split, dict, test_cond={"too few": labels[1:]})
trainer = fmkit.Trainer(paths.CondOT(), fields.MLP(2, width=8, depth=1), callbacks=[])
case(
    "above_floor",
    evaluation.above_floor,
    lambda: {"flow": flow(), "trainer": trainer, "data": split().train},
    flow=NO_FLOW,
    trainer={"None": None, "text": "a", "its class": fmkit.Trainer},
    data={"None": None, "text": "a", "not finite": data.Data(spoilt(x(), NAN)), "a tensor": x()},
)
case(
    "pairing",
    evaluation.pairing,
    lambda: {"trainer": trainer, "data": data.Moons(n_train=20, n_test=12).load(0).train, "seed": 0},
    trainer={"None": None, "text": "a", "its class": fmkit.Trainer},
    data={"None": None, "text": "a", "not finite": data.Data(spoilt(x(), NAN)), "a tensor": x()},
    seed=NO_SEED,
)
TABLE = ("fm", "moons", 0)
case(
    "bench: check_cell",
    protocol.check_cell,
    lambda: dict(zip(("row", "data", "seed"), TABLE, strict=True)),
    row=NO_NAME,
    data=without(NO_NAME, "another package") | {"no counts": "digits"},
    seed=NO_SEED,
)
case(
    "bench: Protocol",
    protocol.Protocol,
    lambda: {"steps": 5, "points": 5},
    steps=NO_COUNT | {"None": None},
    points=NO_COUNT | {"None": None, "one": 1},
)
# -- files of flows ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    file = tmp_path_factory.mktemp("flows") / "flow.safetensors"
    field = objectives.VelocityMatching().field(fields.MLP(2, width=8, depth=1), paths.CondOT())
    fmkit.Flow(sources.Gaussian(), field, solvers.Euler(2), event_shape=2).save(file)
    return file


@pytest.mark.parametrize(
    "value", [None, 3, "x", [], {}, {"name": 3}, {"name": "zz"}, {"name": ["a"]}, [2, 2], [-2], [2.5]]
)
@pytest.mark.parametrize("key", ["flow", "start", "field", "solver", "event_shape", "kind", "format"])
def test_a_flow_whose_description_is_damaged_is_refused(saved, tmp_path, key, value):
    if key in ("solver",) and value is None:
        return  # the default one
    tensors, header = read_tensors(saved)
    header = copy.deepcopy(header)
    (header if key in header else header["flow"])[key] = value
    write_tensors(tmp_path / "it", tensors, header)
    with pytest.raises(SavedFileError, match="it"):
        fmkit.Flow.load(tmp_path / "it")


@pytest.mark.parametrize("path", [None, 3, ["a"], "/", "a\0b", "nowhere", b"a"])
@pytest.mark.parametrize("call", [fmkit.Flow.load, lambda path: flow().save(path if path != "nowhere" else "no/where")])
def test_what_is_no_file_is_refused(call, path):
    with pytest.raises(FmkitError) as caught:
        call(path)
    assert len(str(caught.value)) > 15


def test_weights_that_are_whole_numbers_are_no_weights(saved, tmp_path):
    tensors, header = read_tensors(saved)
    key = next(k for k in tensors if k.startswith("state."))
    write_tensors(tmp_path / "it", tensors | {key: tensors[key].long()}, header)
    with pytest.raises(SavedFileError, match="has torch.int64 for .*, expected torch.float32"):
        fmkit.Flow.load(tmp_path / "it")


@pytest.mark.parametrize(("call", "good", "bad"), CASES)
def test_each_bad_input_gets_a_clear_error(call, good, bad):
    hold(call, good, bad)


def test_there_are_many():
    assert CASES.values() > 300
