"""Everything registered goes through the kit, whoever registered it; and the command that does that by name."""

import json

import pytest

from fmkit import registry
from fmkit.cli.check import check_named, ok, show
from fmkit.errors import ArgumentError, ConfigError, RegistryError

EVERY = [
    e for kind in ("paths", "couplings", "objectives", "solvers", "fields") for e in registry.entries(f"fmkit.{kind}")
]
# What no default can stand for.
GIVEN = {"fields/fmkit/mixture-oracle": {"means": [[-1.0, 0.0], [0.5, 1.0]]}}


@pytest.mark.parametrize("entry", EVERY, ids=lambda e: f"{e.kind}/{e.qualified}")
def test_every_registered_part_keeps_the_laws_of_its_kind(entry):
    name = f"{entry.kind}/{entry.qualified}"
    if name == "fields/fmkit/module":  # a user's own network
        with pytest.raises(ArgumentError, match="field 'module' of fmkit .* needs module: "):
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
