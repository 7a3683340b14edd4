"""`fmkit bench transport2d`: what it runs and does not run again, what it writes, and its one-line errors."""

import json

import pytest

from fmkit.benches.transport2d import Bench
from tests.commands import run

TINY = ("bench", "transport2d", "--steps", 3, "--points", 20)
ONE = (*TINY, "--row", "fm", "--data", "moons", "--seed", 42)


def test_one_cell_then_the_others_asked_for(tmp_path, capsys, monkeypatch):
    assert run(*ONE, "--out", tmp_path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["row"] for r in rows] == ["fm", "reference"]
    assert rows[0]["protocol"] == {"steps": 3, "points": 20}
    asked = []
    monkeypatch.setattr(Bench, "cell", lambda self, *cell: asked.append(cell))
    words = ("--row", "i-cfm", "--row", "fm", "--data", "moons", "--seed", 1, "--seed", 2)
    assert run(*TINY, *words, "--out", tmp_path, "-q") == 0
    assert asked == [(row, "moons", seed) for seed in (1, 2) for row in ("i-cfm", "fm")]
    asked.clear()
    assert run(*TINY, "--out", tmp_path, "-q") == 0
    assert len(asked) == len(set(asked)) >= 40
    assert {seed for _, _, seed in asked[: len(asked) // 5]} == {42}  # a table stopped early has every row
    assert run(*TINY, "--out", tmp_path, "--table", "-q") == 0
    assert len(asked) >= 40


def test_a_row_of_ones_own(tmp_path, capsys):
    own = "sb={path: {name: schrodinger-bridge, sigma: 1.0}, coupling: ot}"
    assert run(*TINY, "--row", own, "--data", "scurve", "--seed", 3, "--out", tmp_path, "--json") == 0
    found = {r["row"]: r for r in json.loads(capsys.readouterr().out)}
    assert found["sb"]["path"] == {"name": "schrodinger-bridge", "sigma": 1.0}
    assert run(*TINY, "--table", "--out", tmp_path) == 0
    assert "N → scurve" in capsys.readouterr().out


def test_the_table_and_the_page(tmp_path, capsys):
    assert run(*ONE, "--out", tmp_path / "run", "--page", tmp_path) == 0
    shown = capsys.readouterr()
    results = json.loads((tmp_path / "transport2d.json").read_text())
    assert f"{results[0]['w2']:.3f}" in shown.out
    assert f"{results[1]['floor']:.3f}" in shown.out
    assert "REDUCED" in shown.out
    assert "[1/1] fm, moons, seed 42" in shown.err
    assert f"| FM | {results[0]['w2']:.3f} |" in (tmp_path / "transport2d.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--row", "otcfm"), "row is 'otcfm', which the table has not; did you mean 'ot-cfm'?"),
        (("--data", "moonz"), "data: no dataset named 'moonz' is installed; did you mean 'moons'?"),
        (("--row", "mine=vp"), "--row: got 'mine=vp', expected NAME={path: ..., coupling: ...}"),
        (("--row", "mine={pathh: vp}"), "--row: got 'mine={pathh: vp}'"),
        (("--row", "mine={path: vpp}"), "path: no path named 'vpp' is installed"),
        (("--row", "mine={path: ["), "--row: got '{path: [', which is no YAML value"),
        (("--row", "fm={path: vp}"), "--row: 'fm' is a row of the table; call yours otherwise"),
        (("--row", "Mine={path: vp}"), "row is 'Mine', expected small letters, digits and hyphens"),
        (("--data", "fmkit/moons"), "data is 'fmkit/moons', expected small letters, digits and hyphens"),
        (("--seed", "-1"), "seed is -1, expected a whole number of at least 0"),
        (("--seed", "x"), "Invalid value for '--seed'"),
        (("--steps", "0"), "Invalid value for '--steps'"),
        (("--points", "1"), "Invalid value for '--points'"),
        (("--out", "/proc/none/run"), "cannot make the folder /proc/none/run"),
        (("--out", "nowhere", "--table"), "--out: there is no folder nowhere"),
        (("--page", "no/where"), "--page: there is no folder no/where"),
    ],
)
def test_mistakes_give_one_line_and_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Bench, "cell", None)  # nothing runs before the mistake is found
    assert run("bench", "transport2d", *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_another_protocol_in_the_folder_is_refused(tmp_path, capsys):
    assert run(*ONE, "--out", tmp_path, "-q") == 0
    assert run(*(w if w != 3 else 4 for w in ONE), "--out", tmp_path, "-q") == 2
    assert "was measured with 3 steps and 20 points, and this is 4 steps and 20 points" in capsys.readouterr().err
