"""Bad inputs to data: data sets and their files, records, settings and what is handed to a trainer; see `sweep`."""

import inspect

import numpy as np
import pytest
import torch

import fmkit
from fmkit import data, fields, paths, registry
from fmkit.errors import ArgumentError
from fmkit.parts import parameters_of
from tests.laws.sweep import (
    INF,
    NAN,
    NO_COUNT,
    NO_GENERATOR,
    NO_PART,
    NO_POINTS,
    NO_SCALE,
    Sweep,
    generator,
    hold,
    spoilt,
    without,
    x,
)

CASES = Sweep()
case = CASES.case

NO_SEED = without(NO_COUNT, "zero") | {"None": None}
NO_FLAG = {"text": "yes", "one": 1, "None": None}
NO_ARRAY = {"text": "zz", "object": object(), "bytes": b"1", "nan": NAN, "mapping": {}}
WRONG = {
    bool: NO_FLAG,
    int: without(NO_COUNT, "zero") | {"None": None},
    float: {"text": "a", "list": [0.5], "nan": NAN, "inf": INF, "True": True, "None": None},
}

# -- data sets --------------------------------------------------------------------------------------------------------

for entry in registry.entries("fmkit.datasets"):
    cls = entry.load()
    if any(p.default is inspect.Parameter.empty for p in parameters_of(cls).values()):
        continue
    name = entry.qualified
    bad = {p.name: WRONG.get(p.annotation, NO_ARRAY) for p in parameters_of(cls).values()}
    case(name, cls, dict, **bad)
    # Two come with other packages, which may not be there.
    if entry.package == "fmkit" and entry.name not in ("fashion-mnist", "mnist-5k"):
        case(f"{name}: load", cls().load, dict, seed=NO_SEED)
    if not issubclass(cls, data.Toy):
        continue
    few = cls(n_train=10, n_test=10)
    for call in (few.sample, few.draw):
        case(
            f"{name}: {call.__name__}",
            call,
            lambda: {"n": 4, "generator": generator()},
            n=NO_COUNT | {"None": None},
            generator=NO_GENERATOR | {"None": None},
        )
    case(f"{name}: law", few.law, dict, component=without(NO_COUNT, "zero") | {"too many": few.components})
case(
    "dequantize",
    data.dequantize,
    lambda: {"x": x(), "generator": generator()},
    x=without(NO_POINTS, "nan", "inf"),
    generator=NO_GENERATOR,
)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Good files, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text("a,b,c\n" + "".join(f"{i},{i * i % 7},{i % 2}\n" for i in range(10)))
    rows = np.random.default_rng(0).normal(size=(10, 2))
    np.save("good.npy", rows)
    np.savez("two.npz", a=rows, b=rows)
    (tmp_path / "folder.csv").mkdir()
    return tmp_path


def test_bad_arguments_of_a_table(tables):
    def load(seed=0, **given):
        return data.Tabular(**given).load(seed)

    columns = {
        "text": "a",
        "unknown": ["z"],
        "negative": [-1],
        "large": [9],
        "half": [1.5],
        "True": [True],
        "number": 3,
    }
    hold(
        load,
        lambda: {"file": "good.csv"},
        {
            "file": {"None": None, "number": 3, "bytes": b"a", "list": ["good.csv"], "nobody": "~nobody-here/a.csv"},
            "key": {"number": 3, "of no archive": "a"},
            "columns": columns | {"none": [], "twice": ["a", "a"], "both ways": ["a", 0], "nested": [["a"]]},
            "condition": columns | {"all": ["a", "b", "c"]},
            "classes": without(NO_COUNT, "two") | {"without a condition": 2},
            "header": {"text": "yes", "one": 1, "none, with text": False},
            "standardise": NO_FLAG,
            "test_fraction": NO_SCALE | {"zero": 0.0, "one": 1.0, "nearly one": 0.9999},
            "seed": NO_SEED,
        },
    )
    hold(
        load,
        lambda: {"file": "good.csv", "condition": ["c"], "classes": 2},
        {"classes": {"too few": 1}, "condition": {"no label": ["b"], "two": ["b", "c"]}, "columns": {"both": ["c"]}},
    )
    hold(load, lambda: {"file": "good.npy"}, {"key": {"of no archive": "a"}, "header": {"of no text": True}})
    hold(load, lambda: {"file": "two.npz", "key": "b"}, {"key": {"None": None, "unknown": "c", "number": 3}})


@pytest.mark.parametrize("name", ["nowhere.csv", "folder.csv", "", "good.txt", "a\0b.csv", "x" * 5000 + ".csv"])
def test_a_file_that_is_not_there_is_refused_when_the_data_set_is_made(tables, name):
    with pytest.raises(ArgumentError) as caught:
        data.Tabular(name)
    assert (name or "ends in")[:40] in str(caught.value).replace("\\x00", "\0")
    assert len(str(caught.value)) > 20


FILES = {
    "empty": "",
    "blank": "\n\n",
    "header alone": "a,b\n",
    "one row": "a,b\n1,2\n",
    "two rows": "a,b\n1,2\n3,4\n",
    "nan": "a,b\n1,2\n3,nan\n4,5\n5,6\n",
    "NA": "a,b\n1,2\n3,NA\n4,5\n5,6\n",
    "missing": "a,b\n1,2\n3,\n4,5\n5,6\n",
    "infinite": "a,b\n1,2\n3,-inf\n4,5\n5,6\n",
    "overflow": "a,b\n1,2\n3,1e999\n4,5\n5,6\n",
    "text": "a,b\n1,x\n3,y\n4,z\n5,w\n",
    "short row": "a,b\n1,2\n3\n4,5\n5,6\n",
    "long row": "a,b\n1,2\n3,4,5\n4,5\n5,6\n",
    "constant": "a,b\n1,2\n3,2\n4,2\n5,2\n",
    "semicolons": "a;b\n1;2\n3;4\n",
    "half a header": "1,b\n1,2\n3,4\n",
    "separators": "a,b\n1,2\n3,1_000\n4,5\n5,6\n",
    "hexadecimal": "a,b\n1,2\n3,0x10\n4,5\n5,6\n",
    "open quote": 'a,b\n1,"2\n3,4\n',
    "vast cell": "a,b\n1," + "9" * 200_000 + "\n",
    "Latin": "a,b\n1,é\n".encode("latin-1"),
    "bytes": b"\x00\x01\x02,\xff\n",
}
ARRAYS = {
    "objects": np.array([[None]]),
    "texts": np.array([["a"]]),
    "complex": np.ones((5, 2), complex),
    "dates": np.zeros((3, 2), "M8[s]"),
    "records": np.zeros(3, [("a", "f8")]),
    "0-d": np.array(1.0),
    "1-d": np.arange(5.0),
    "3-d": np.zeros((2, 2, 2)),
    "empty": np.zeros((0, 2)),
    "nan": np.array([[1, NAN], [2, 3], [3, 4.0]]),
}


@pytest.mark.parametrize("content", [pytest.param(v, id=k) for k, v in {**FILES, **ARRAYS}.items()])
def test_a_file_that_holds_no_table_of_numbers_is_refused_by_name(tables, content):
    name = "it.npy" if isinstance(content, np.ndarray) else "it.csv"
    if isinstance(content, np.ndarray):
        np.save(name, content, allow_pickle=True)
    else:
        (tables / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArgumentError, match="^it\\."):
        data.Tabular(name).load()


@pytest.mark.parametrize("name", ["good.npy", "two.npz"])
@pytest.mark.parametrize("kept", [0, 4, 60, -20])
def test_a_damaged_array_is_refused_by_name(tables, name, kept):
    content = (tables / name).read_bytes()
    (tables / f"cut-{name}").write_bytes(content[:kept])
    with pytest.raises(ArgumentError, match=f"^cut-{name}"):
        data.Tabular(f"cut-{name}", key="a" if name == "two.npz" else None).load()


# -- records ----------------------------------------------------------------------------------------------------------

case(
    "Data",
    data.Data,
    lambda: {"x": x()},
    transform={"a name": "affine", "another kind": paths.CondOT()},
    augment={"text": "flip", "number": 1},
    density={"text": "a", "numbers": [1]},
)
case(
    "Split",
    data.Split,
    lambda: {"train": data.Data(x()), "test": x()},
    train={"None": None, "a tensor": x(), "text": "a"},
    test=without(NO_POINTS, "nan", "inf"),
    classes=NO_COUNT,
    levels=NO_COUNT,
)
law = data.GaussianMixture().law()
case(
    "Stratum",
    data.Stratum,
    lambda: {"share": 0.5, "law": law},
    share=NO_SCALE | {"zero": 0.0, "above one": 2.0},
    law=NO_PART | {"its class": type(law)},
)
case(
    "Settings",
    fmkit.Settings,
    dict,
    **{
        name: NO_FLAG if name == "loss_floor" else {"object": object(), "negative": -1, "nan": NAN, "list": [1, 2, 3]}
        for name in fmkit.Settings.model_fields
    },
    unknown={"key": 1},
)
case(
    "Settings: ranges",
    fmkit.Settings,
    dict,
    betas={
        "one": (1.0, 0.9),
        "negative": (-0.1, 0.9),
        "nan": (NAN, 0.9),
        "True": (True, 0.9),
        "three": (0.1, 0.2, 0.3),
    },
    lr={"zero": 0.0, "inf": INF, "True": True, "text": "1e-3"},
    clip={"zero": 0.0, "inf": INF},
    ema={"one": 1.0},
    weight_decay={"inf": INF},
    steps={"zero": 0, "half": 1.5, "1e3": 1e3, "True": True},
    seed={"half": 0.5, "True": True, "None": None},
    precision={"another": "int8"},
)

# -- what a trainer is handed -----------------------------------------------------------------------------------------


def fit(data, cond=None, settings=None, **given):
    network = fields.MLP(2, width=8, depth=1)
    settings = fmkit.Settings(steps=1, batch_size=4) if settings is None else settings
    return fmkit.Trainer(paths.CondOT(), network, settings=settings, callbacks=[]).fit(data, cond, **given)


def randomly(augment):
    return data.Data(x(), augment=augment)


NO_DATA = without(NO_POINTS, "array", "0-d") | {
    "texts": np.array([["a", "b"]]),
    "objects": np.array([[None, None]]),
    "vector": x()[0],
    "mapping": {"x": x()},
    "a generator": (i for i in range(3)),
    "one of two": (x(),),
    "three": (x(),) * 3,
    "pairs of other lengths": (x(), x(5)),
    "pairs of other events": (x(), x(d=3)),
    "pairs that are not finite": (spoilt(x(), NAN), x()),
    "nothing in a record": data.Data(None),
    "a record that is not finite": data.Data(spoilt(x(), NAN)),
    "augmented to nothing": randomly(lambda x, g: None),
    "augmented to nan": randomly(lambda x, g: x * NAN),
    "augmented to fewer": randomly(lambda x, g: x[1:]),
    "augmented to integers": randomly(lambda x, g: x.long()),
}
case(
    "Trainer.fit",
    fit,
    lambda: {"data": x()},
    data=NO_DATA,
    validation=without(NO_DATA, "None"),
    cond={"text": "a", "texts": ["a"] * 4, "mapping": {}, "number": 1, "short": torch.zeros(3)},
    folder={"number": 3, "a name that is none": "a\0b", "vast": "x" * 5000},
    resume=NO_FLAG,
    initial=without(NO_PART, "None") | {"another network": fields.MLP(2)},
    settings={"unknown device": fmkit.Settings(steps=1, batch_size=4, device="zz")},
)


@pytest.mark.parametrize(("call", "good", "bad"), CASES)
def test_each_bad_input_gets_a_clear_error(call, good, bad):
    hold(call, good, bad)


def test_there_are_many():
    assert CASES.values() > 900
