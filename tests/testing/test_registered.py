"""Everything registered goes through the kit, whoever registered it; and the command that does that by name."""

import json

import pytest

from fmkit import registry
from fmkit.cli.check import arguments_of, check_all, check_named, check_words, ok, show
from fmkit.errors import ArgumentError, ConfigError, RegistryError

EVERY = [
    e
    for kind in ("paths", "couplings", "objectives", "solvers", "fields", "divergences")
    for e in registry.entries(f"fmkit.{kind}")
]
# What no default can stand for, and fits that need no more than this to keep their laws.
GIVEN = {
    "couplings/fmkit/semidiscrete": {"steps": 50},
    "couplings/fmkit/conditional-semidiscrete": {"steps": 50},
    "fields/fmkit/mixture-oracle": {"means": [[-1.0, 0.0], [0.5, 1.0]]},
    "fields/fmkit/guidance-interval": {
        "guidance": {"name": "classifier-free", "scale": 2.0, "field": {"name": "mlp", "event_shape": [2]}}
    },
}


@pytest.mark.parametrize("entry", EVERY, ids=lambda e: f"{e.kind}/{e.qualified}")
def test_every_registered_part_keeps_the_laws_of_its_kind(entry):
    name = f"{entry.kind}/{entry.qualified}"
    asked = {
        "fields/fmkit/module": "field 'module' of fmkit .* needs module: ",
        "couplings/fmkit/reflow": "needs flow: ",
    }
    if name in asked:  # a user's own network, and a trained flow
        with pytest.raises(ArgumentError, match=asked[name]):
            check_named(name)
        return
    rows = check_named(name, GIVEN.get(name))
    assert [r["line"] for r in rows if r["status"] == "failed"] == []
    assert ok(rows)
    assert len([r for r in rows if r["status"] == "passed"]) >= 5


def test_rows_are_plain_data_and_show_ends_with_the_verdict():
    rows = check_named("paths/condot")
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {r["id"] for r in rows} >= {"path.velocity", "path.continuity", "path.conversions", "path.seeds"}
    assert show(rows).splitlines()[-1] == f"fmkit/condot (paths): {len(rows)} laws hold, 0 broken, 0 not checked"


def test_a_broken_law_stands_last_before_the_verdict_and_is_not_ok():
    rows = check_named("paths/condot")
    rows[0] = {**rows[0], "status": "failed", "line": "path.velocity BROKEN"}
    assert not ok(rows)
    assert show(rows).splitlines()[-2] == "path.velocity BROKEN"
    assert not ok([{**r, "status": "unchecked"} for r in rows])


def test_arguments_are_handed_over_and_checked():
    assert ok(check_named("paths/icfm", {"sigma": 0.3}))
    with pytest.raises(ConfigError, match="no parameter 'sgima'"):
        check_named("paths/icfm", {"sgima": 0.3})


def test_what_has_no_laws_or_no_name_is_refused():
    with pytest.raises(ArgumentError, match="there are no laws for dataset 'moons'"):
        check_named("datasets/moons")
    with pytest.raises(RegistryError, match="no part named 'condott' is installed; did you mean 'condot'"):
        check_named("condott")


def test_words_are_names_and_arguments_for_one():
    assert arguments_of(["path.sigma=0.3", "path=icfm", "std=[1, 2]"]) == {
        "path": {"name": "icfm", "sigma": 0.3},
        "std": [1, 2],
    }
    ((named, rows),) = check_words(["mixture-oracle", "means=[[-1.0], [2.0]]", "path=icfm", "path.sigma=0.3"])
    assert named
    assert ok(rows)
    assert [rows[0]["part"] for _, rows in check_words(["condot", "vp"])] == ["fmkit/condot", "fmkit/vp"]
    for words, options, said in (
        ([], {}, "name a part"),
        (["condot", "vp", "sigma=1"], {}, "sigma cannot be for 2 parts"),
        (["condot"], {"everything": True}, "'condot' is not wanted beside --all"),
        (["condot", "=3"], {}, "'=3' is no key=value"),
        (["condot", "a=[1"], {}, "no YAML value"),
        ([], {"package": "fmkitt"}, "no package 'fmkitt' provides parts; did you mean 'fmkit'"),
    ):
        with pytest.raises((ArgumentError, ConfigError, RegistryError), match=said):
            list(check_words(words, **options))


def test_a_package_is_checked_part_by_part_and_what_it_lacks_is_said(monkeypatch):
    ours = [registry.find("fmkit.couplings", name) for name in ("independent", "pairs")]
    lacking = registry.find("fmkit.fields", "module")
    unlike = registry.find("fmkit.datasets", "moons")
    broken = registry.Entry("fmkit.paths", "gone", "no_such_module:Path", "fmkit", "1.0")
    monkeypatch.setattr(registry, "entries", lambda group=None: [*ours, lacking, unlike, broken])
    found = list(check_all("fmkit"))
    assert [rows[0]["part"] for rows in found] == ["fmkit/independent", "fmkit/pairs", "fmkit/module", "fmkit/gone"]
    assert [ok(rows, named=False) for rows in found] == [True, True, True, False]
    assert "needs module: " in found[2][0]["line"]
    assert "hand it over as module=VALUE" in found[2][0]["line"]
    assert not ok(found[2])
    assert "cannot be imported" in show(found[3])
