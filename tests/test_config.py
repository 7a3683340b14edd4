"""Configurations: layers, types, and mistakes that say where they stand."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmkit import config, recipes
from fmkit.config import Layers, assemble, dump, load_layers, read_file, settings_of, validate
from fmkit.errors import CombinationError, ConfigError
from fmkit.schema import schema


def built(words=(), base=None):
    return validate(load_layers(base or {"data": "moons"}, None, list(words), "moons"))


def test_defaults_file_and_words_are_laid_over_each_other(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("data: moons\npath: {name: vp, beta_max: 12.0}\ntrainer:\n  lr: 1e-4\n  steps: 50\n")
    layers = load_layers({"data": "digits", "seed": 3}, file, ["trainer.steps=70", "path.beta_min=0.2"], "digits")
    checked = validate(layers)
    assert checked.data == "moons"
    assert checked.path == {"name": "vp", "beta_max": 12.0, "beta_min": 0.2}
    assert checked.trainer == {"lr": 1e-4, "steps": 70}
    assert checked.seed == 3
    assert settings_of(checked).seed == 3


def test_yaml_is_version_1_2(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("data: moons\ntrainer: {lr: 1e-4}\nsource: {name: uniform, low: -1, high: 1}\n")
    values, _ = read_file(file)
    assert values["trainer"]["lr"] == 1e-4
    assert isinstance(values["trainer"]["lr"], float)


def test_a_new_name_drops_the_parameters_of_the_old_part():
    base = {"data": "moons", "path": {"name": "condot", "sigma_min": 0.1}}
    assert built(["path.name=vp"], base).path == {"name": "vp"}
    assert built(["path=vp"], base).path == "vp"
    assert built(["path.name=condot"], base).path == {"name": "condot", "sigma_min": 0.1}
    assert built(["path.beta_max=5", "path.name=vp"], base).path == {"name": "vp", "beta_max": 5}
    assert built(["path={name: ve, sigma_max: 9}"], base).path == {"name": "ve", "sigma_max": 9}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pth=vp"], r"^pth: unknown key; did you mean 'path'\? \('pth=vp'\)$"),
        (["path=vpp"], r"^path: no path named 'vpp' is installed; did you mean 'vp'\? \('path=vpp'\)$"),
        (
            ["path.name=vp", "path.bta_max=3"],
            r"^path.bta_max: VariancePreserving has no parameter 'bta_max'; did you mean 'beta_max'\? "
            r"\('path.bta_max=3'\)$",
        ),
        (["path.name=vp", "path.beta_max=high"], r"^path.beta_max: got 'high', expected a valid number"),
        (["path.name=vp", "path.beta_max=-3"], r"^path: VP needs 0 < beta_min <= beta_max, got 0.1 and -3"),
        (["trainer.stepz=3"], r"^trainer.stepz: unknown key; did you mean 'steps'\? \('trainer.stepz=3'\)$"),
        (["trainer.steps=true"], r"^trainer.steps: got True, expected a valid integer"),
        (["trainer.steps=2.5"], r"^trainer.steps: got 2.5, expected a valid integer"),
        (["trainer.lr=0"], r"^trainer.lr: got 0, expected greater than 0"),
        (["trainer.seed=3"], r"^trainer.seed: the seed is a key of its own"),
        (["trainer=7"], r"^trainer: got 7, expected a valid dictionary"),
        (["seed=-1"], r"^seed: got -1"),
        (["seed=1.5"], r"^seed: got 1.5"),
        (["path=[1, 2]"], r"^path: got \[1, 2\], expected a name or a mapping with a name"),
        (["path=null"], r"^path: got None, expected a name or a mapping with a name"),
        (["solver={name: euler, steps: 0}"], r"^solver: steps is 0, expected a whole number of at least 1"),
        (["solver={name: euler, grid: {name: shifted, shift: 0}}"], r"^solver.grid: shift is 0"),
        (["solver={name: euler, grid: shiftd}"], r"^solver.grid: no time grid named 'shiftd'.*'shifted'"),
        (["field.wdth=3"], r"^field.wdth: MLP has no parameter 'wdth'; did you mean 'width'"),
        (["callbacks=[progres]"], r"^callbacks.0: no callback named 'progres' is installed; did you mean 'progress'"),
        (["data=moonz"], r"^data: no dataset named 'moonz' is installed; did you mean 'moons'"),
        (["data={name: tabular, file: nowhere.csv}"], r"^data: .*nowhere.csv"),
        (["steps"], r"'steps' is no key=value, as trainer.steps=2000"),
        (["=3"], r"'=3' is no key=value"),
        (["path=[1,"], r"^path: got '\[1,', which is no YAML value"),
        (["seed.x=3"], r"^seed.x"),
    ],
)
def test_mistakes_say_what_where_and_what_would_be_right(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        base = {"data": "moons", "seed": 0, "field": {"name": "mlp"}}
        assemble(load_layers(base, None, words, "moons"), progress=False)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_file_has_its_line(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("data: moons\n\npath:\n  name: vp\n  bta_max: 3\n")
    with pytest.raises(ConfigError, match=rf"path.bta_max: .*\({file}, line 5\)"):
        assemble(load_layers({}, file, []), progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [", r"line 1"),
        ("data: moons\ndata: digits\n", r"line 2"),
        ("- data\n", "holds list, expected a mapping"),
        ("", "holds NoneType, expected a mapping"),
        ("path: vp\n", "data: missing; a run needs data"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        validate(load_layers({}, file, []))


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration .*nowhere.yaml: No such file"):
        load_layers({}, tmp_path / "nowhere.yaml", [])


def test_meaningless_combinations_are_refused_with_the_reason():
    with pytest.raises(CombinationError, match="given x1 the source is no longer Gaussian"):
        assemble(load_layers({"data": "moons"}, None, ["objective=score", "coupling=ot"]), progress=False)
    with pytest.raises(CombinationError, match="a score needs a standard Gaussian source"):
        assemble(load_layers({"data": "moons"}, None, ["objective=score", "source=uniform"]), progress=False)


def test_the_data_supplies_the_shape_and_the_time_goes_to_the_objective():
    job = assemble(load_layers({"data": "moons", "time": {"name": "logit-normal", "std": 0.5}}, None, []), False)
    assert job.trainer.field.event_shape == (2,)
    assert job.trainer.objective.time.std == 0.5
    labelled = assemble(load_layers({"data": {"name": "moons", "labels": True}}, None, []), progress=False)
    assert labelled.trainer.field.classes == 2


def test_dump_and_load_are_inverse(tmp_path):
    checked = built(["path.name=vp", "path.beta_max=9.5", "trainer.lr=1e-4", "callbacks=[progress]"])
    file = tmp_path / "config.yaml"
    file.write_text(dump(checked))
    again = validate(load_layers({}, file, []))
    assert dump(again) == dump(checked)
    assert settings_of(again) == settings_of(checked)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(string.ascii_letters + " -", max_size=8),
    st.lists(st.integers(-9, 9), max_size=3),
)
keys = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=5), min_size=1, max_size=3).map(".".join)


@given(keys, values)
def test_a_word_says_what_json_says(key, value):
    """JSON is YAML 1.2: any value written as JSON comes back, at its place."""
    layers = load_layers({}, None, [f"{key}={json.dumps(value)}"])
    there = layers.values
    for word in key.split("."):
        there = there[word]
    assert there == value
    assert type(there) is type(value)


def test_the_schema_knows_every_installed_part():
    whole = schema()
    options = whole["properties"]["path"]["anyOf"]
    assert "condot" in options[0]["enum"]
    vp = next(o for o in options[1:] if o["properties"]["name"]["const"] == "vp")
    assert vp["properties"]["beta_max"] == {"type": "number", "default": 20.0}
    assert vp["additionalProperties"] is False
    assert whole["additionalProperties"] is False
    assert "seed" not in whole["properties"]["trainer"]["properties"]
    json.dumps(whole)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_valid_configuration(name):
    checked = validate(load_layers(recipes.find(name), None, [], name))
    settings_of(checked)
    assert dump(checked)


def test_layers_remember_where_values_came_from():
    layers = Layers()
    layers.put("path.beta_max", 3, "'path.beta_max=3'")
    assert layers.place("path.beta_max") == "'path.beta_max=3'"
    assert layers.place("seed") == ""
    assert config.located(ConfigError("wrong", "path.beta_max.inner"), layers).said == "wrong ('path.beta_max=3')"
