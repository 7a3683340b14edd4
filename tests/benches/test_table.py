"""The table is a function of results: worked out by hand, flagged where reduced, never mixed."""

import json
from pathlib import Path

import pytest

from fmkit.benches import table
from fmkit.benches.protocol import PUBLISHED
from fmkit.errors import ArgumentError

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
FULL, SMALL = {"steps": 20_000, "points": 10_000}, {"steps": 100, "points": 50}


def cell(row, data, seed, w2, npe, protocol=FULL):
    return {"row": row, "data": data, "seed": seed, "w2": w2, "npe": npe, "protocol": protocol, "versions": {"v": "1"}}


def reference(data, seed, floor, protocol=FULL):
    shared = {"protocol": protocol, "versions": {"v": "1"}}
    return {"row": "reference", "data": data, "seed": seed, "floor": floor, **shared}


def line(text, label, title="N → moons"):
    part = text[text.index(f"### {title}") :]
    return next(row for row in part.splitlines() if row.startswith(f"| {label} |"))


def test_mean_and_deviation_over_the_seeds_by_hand():
    """Of 0.1, 0.2, 0.3 the mean is 0.2 and the sample standard deviation 0.1."""
    results = [cell("ot-cfm", "moons", seed, w2, 2 * w2) for seed, w2 in ((44, 0.3), (42, 0.1), (43, 0.2))]
    results += [cell("ot-cfm", "8gaussians", 42, 9.0, 9.0), reference("moons", 42, 0.05), reference("moons", 43, 0.07)]
    text = table.markdown(results)
    wanted = "| OT-CFM | 0.200 ± 0.100 | 0.130 ± 0.016 | 0.400 ± 0.200 | 0.083 ± 0.009 | 42, 43, 44 |"
    assert line(text, "OT-CFM") == wanted
    assert line(text, "OT-CFM", "N → 8 Gaussians").startswith("| OT-CFM | 9.000 | 0.303 ± 0.043 | 9.000 |")
    assert line(text, "FM") == "| FM |  | 0.209 ± 0.055 |  | 0.762 ± 0.099 | none |"
    assert line(text, "floor") == "| floor | 0.060 ± 0.014 |  |  |  | 42, 43 |"
    assert "REDUCED" not in text


def test_all_five_seeds_are_said_shortly():
    results = [cell("fm", "moons", seed, 0.1, 0.1) for seed in (42, 43, 44, 45, 46)]
    assert line(table.markdown(results), "FM").endswith("| 42 to 46 |")


def test_the_order_of_results_does_not_matter():
    results = [cell(row, "moons", seed, seed / 100, seed) for row in ("fm", "i-cfm") for seed in (1, 2, 3)]
    assert table.page(results) == table.page(results[::-1])


def test_other_rows_and_data_stand_below_the_published_ones():
    text = table.markdown([cell("mine", "rings", 1, 0.5, 0.25), cell("mine", "moons", 1, 0.75, 0.25)])
    assert line(text, "mine", "N → rings") == "| mine | 0.500 |  | 0.250 |  | 1 |"
    rows = [row.split("|")[1].strip() for row in text[text.index("### N → moons") :].splitlines() if row[:1] == "|"]
    assert rows[2:9] == ["FM", "I-CFM", "OT-CFM", "semidiscrete OT", "[SF]2M exact", "mine", "floor"]


def test_a_reduced_run_says_so():
    text = table.page([cell("fm", "moons", 42, 0.2, 0.1, SMALL)])
    assert "\nREDUCED, not comparable with what was published: 100 steps of 512, 50 points" in text
    assert "REDUCED" not in table.page([cell("fm", "moons", 42, 0.2, 0.1)])


def test_protocols_make_no_common_table():
    with pytest.raises(ArgumentError, match="several protocols"):
        table.markdown([cell("fm", "moons", 42, 0.2, 0.1), cell("fm", "moons", 43, 0.2, 0.1, SMALL)])


def test_the_published_figures():
    """Table 2 once more, as text."""
    told = """
        ot-cfm .303 .043 .031 .027 .130 .016 .083 .009
        i-cfm .373 .103 .202 .055 .178 .014 .891 .120
        fm .343 .058 .190 .054 .209 .055 .762 .099
        sf2m-exact .275 .058 .016 .012 .124 .023 .053 .038
    """
    for row, *figures in (text.split() for text in told.strip().splitlines()):
        for data, four in (("8gaussians", figures[:4]), ("moons", figures[4:])):
            there = PUBLISHED[row, data]
            assert (*there.w2, *there.npe) == tuple(float(f) for f in four)


def test_the_page_is_what_its_results_say():
    results = json.loads((DOCS / "transport2d.json").read_text())
    assert (DOCS / "transport2d.md").read_text() == table.page(results), "run fmkit bench transport2d --page"
    assert table.protocol_of(results).full
