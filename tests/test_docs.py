"""The documentation: its Python runs, its plugin installs and trains, its tables and its docstrings' examples hold."""

import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from packaging.requirements import Requirement
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import fmkit
from fmkit import registry
from fmkit.cli import main
from fmkit.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# The pages show trainings of a useful length; here a few steps must do. These are the only changes made to them.
SHORTER = [(r"\bsteps=\d{3,}", "steps=5"), (r"\brange\(\d{3,}\)", "range(5)"), (r"\bMoons\(\)", "Moons(n_test=50)")]
TINY = ["field=mlp", "trainer.steps=2", "trainer.batch_size=32", "field.width=8", "field.depth=1", "data.n_test=20"]


def shortened(text):
    for pattern, by in SHORTER:
        text = re.sub(pattern, by, text)
    return text


def run_python(page, tmp_path, monkeypatch):
    """Runs the Python blocks of a page in order, in one namespace; those with a title are files, and are left out."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / page.name
    copy.write_text(shortened(page.read_text()))
    examples = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(copy))
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/quickstart.md", "docs/concepts.md"])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    assert run_python(ROOT / page, tmp_path, monkeypatch) >= 1


def files_of(page):
    """The files that a page tells its reader to write, by name: its blocks with a title."""
    blocks = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(dict(blocks)), "two blocks with one title"
    return dict(blocks)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The plugin of docs/extending.md, written from the page alone and installed as pip would: code and metadata."""
    folder = tmp_path_factory.mktemp("fmkit-smoothstep")
    files = files_of(DOCS / "extending.md")
    first = files["pyproject.toml"]
    later = first[: first.index("[project.entry-points")] + files.pop("pyproject.toml, the entry points")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "src"))
        yield folder, tomllib.loads(first)["project"], tomllib.loads(later)["project"]
    for name in [m for m in sys.modules if m.partition(".")[0] == "fmkit_smoothstep"]:
        del sys.modules[name]
    registry.refresh()


def install(plugin, project):
    folder = plugin[0] / "src"
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    lines += [f"Requires-Dist: {Requirement(r)}" for r in project["dependencies"]]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    table = project["entry-points"].items()
    text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in table)
    (info / "entry_points.txt").write_text(text)
    registry.refresh()


def fmkit_command(*words):
    with pytest.raises(SystemExit) as left:
        main([str(w) for w in words])
    return left.value.code


def test_the_ten_minutes_of_the_page(plugin, tmp_path, monkeypatch, capsys):
    """From the two-function path to a trained flow, with the commands of the page."""
    monkeypatch.chdir(tmp_path)
    install(plugin, plugin[1])
    page = (DOCS / "extending.md").read_text()
    commands = re.findall(r"^fmkit (.*)$", page[: page.index("## One package, many parts")], flags=re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["plugins", "plugins", "train", "plugins"]
    assert fmkit_command(*commands[0].split()) == 0
    assert re.search(r"^paths +smoothstep +fmkit-smoothstep +0\.1\.0$", capsys.readouterr().out, flags=re.MULTILINE)
    assert fmkit_command(*commands[1].split()) == 0
    assert capsys.readouterr().out.strip() in page  # the page shows the answer, word for word
    assert fmkit_command(*commands[2].split(), *TINY, "--quiet") == 0
    assert fmkit.Flow.load("runs/moons/flow.safetensors").field.path.alpha(0.25) == pytest.approx(0.15625)
    capsys.readouterr()
    assert fmkit_command(*commands[3].split()) == 0
    assert "0 broken" in capsys.readouterr().out


def test_the_tests_that_the_page_gives_pass(plugin):
    install(plugin, plugin[1])
    module = {}
    exec((plugin[0] / "tests/test_smoothstep.py").read_text(), module)
    tests = [f for name, f in module.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_every_part_of_the_page_loads_by_its_name(plugin):
    install(plugin, plugin[2])
    wanted = {(group, name) for group, names in plugin[2]["entry-points"].items() for name in names}
    for group, name in wanted:
        part = registry.load(group, name)
        assert part.group == group
        assert inspect.getdoc(part)
    assert len(wanted) == 15


def test_the_python_of_the_extending_page_runs(plugin, tmp_path, monkeypatch):
    install(plugin, plugin[2])
    assert run_python(DOCS / "extending.md", tmp_path, monkeypatch) >= 3


def test_the_parts_of_the_page_train_together(plugin, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    install(plugin, plugin[2])
    trial = plugin[0] / "trial.yaml"
    assert fmkit_command("train", trial, *TINY, "trainer.log_every=1", "--out", "a", "--quiet") == 0
    assert len(Path("a/losses.csv").read_text().splitlines()) == 3
    assert fmkit.Flow.load("a/flow.safetensors").field.path.pace == 0.3
    words = ["path=arc", "path.bend=0.4", "solver=ralston", "solver.steps=40"]
    assert f"fmkit train trial.yaml {' '.join(words)}\n" in (DOCS / "extending.md").read_text()
    assert fmkit_command("config", "show", trial, *words) == 0
    capsys.readouterr()
    page = (DOCS / "extending.md").read_text()
    for word in ("path.pace=fast", "path.paec=1"):  # the two mistakes the page shows, word for word
        assert fmkit_command("train", trial, word, "--out", "b") == 2
        assert capsys.readouterr().err.strip() in page


@pytest.mark.parametrize(
    ("source", "x", "log_prob"),
    [(1.0, [[0.0, 0.0]], -1.3862943611198906), (0.5, [[1.0, -0.5]], -3.0), (2.0, [[2.0, 0.0]], -3.772588722239781)],
)
def test_the_laplace_source_of_the_page(plugin, source, x, log_prob):
    """log p = -sum |x| / b - d log 2b; and its samples have variance 2 b² and half their mass within b log 2."""
    install(plugin, plugin[2])
    laplace = registry.load("fmkit.sources", "laplace")(source)
    assert laplace.log_prob(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(log_prob)
    draws = laplace.sample((200_000, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert draws.var().item() == pytest.approx(2 * source**2, rel=0.03)
    assert (draws.abs() < source * 0.6931471805599453).double().mean().item() == pytest.approx(0.5, abs=0.005)


def test_the_sliced_coupling_of_the_page_sorts_in_one_dimension(plugin, seeded):
    """Where there is one direction only, it is exact optimal transport."""
    install(plugin, plugin[2])
    x0, x1 = torch.randn(2, 64, 1, generator=seeded(0))
    i0, i1 = registry.load("fmkit.couplings", "sliced")().pair(x0, x1, generator=seeded(1))
    o0, o1 = fmkit.couplings.OptimalTransport().pair(x0, x1)
    assert dict(zip(i1.tolist(), i0.tolist(), strict=True)) == dict(zip(o1.tolist(), o0.tolist(), strict=True))


# The tables.


def test_the_table_of_registered_names_is_the_registry():
    page = (DOCS / "reference" / "registered.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| \[`\w+`\]\[([\w.]+)\] \|", page, flags=re.MULTILINE)
    sections = re.split(r"^## .*`(fmkit\.\w+)`.*$", page, flags=re.MULTILINE)
    told = {
        (group, name, place)
        for group, text in zip(sections[1::2], sections[2::2], strict=True)
        for name, place in re.findall(r"^\| `([\w-]+)` \| \[`\w+`\]\[([\w.]+)\] \|", text, flags=re.MULTILINE)
    }
    there = {(e.group, e.name, e.value.replace(":", ".")) for e in registry.entries() if e.package == "fmkit"}
    assert told == there
    assert len(rows) == len(there)


def test_the_table_of_kinds_is_true():
    """docs/extending.md names every group, and base classes that are of it."""
    page = (DOCS / "extending.md").read_text()
    table = page[page.index("## The other kinds") : page.index("## Parameters")]
    rows = re.findall(r"^\| [a-z ]+ \| `(fmkit\.\w+)` \| `?([\w.]+)", table, flags=re.MULTILINE)
    assert {group for group, _ in rows} == {e.group for e in registry.entries() if e.package == "fmkit"}
    for group, base in rows:
        if "." in base:
            module, _, name = base.rpartition(".")
            assert getattr(importlib.import_module(module), name).group == group


def test_the_map_shows_every_room_in_the_order_of_the_imports():
    """docs/architecture.md against the folder, and against the layers that the import linter checks."""
    page = (DOCS / "architecture.md").read_text()
    table = page[page.index("## The rooms") : page.index("## The contracts")]
    rows = re.findall(r"^\| (`.*?`) \|", table, flags=re.MULTILINE)
    rooms = [re.sub(r"\.py$|/$", "", room) for row in rows for room in re.findall(r"`([^`]+)`", row)]
    modules = {m.name for m in pkgutil.iter_modules(fmkit.__path__) if not m.name.startswith("_")}
    assert set(rooms) == modules
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    height = {name.removeprefix("fmkit."): -i for i, layer in enumerate(layers) for name in layer.split(" | ")}
    assert [height[room] for room in rooms] == sorted(height[room] for room in rooms)


def test_every_command_line_of_the_pages_is_one():
    """Each `fmkit ...` in a shell block names a command, with options that it has; nothing is run."""
    lines = [
        line.partition("  #")[0].partition(" > ")[0]
        for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for line in re.findall(r"(?:^|&& )(fmkit .*)$", block, flags=re.MULTILINE)
    ]
    assert len(lines) > 20
    for line in lines:
        command, words = typer.main.get_command(app), shlex.split(line)[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(line, words)  # parses, and refuses what it does not know


# The docstrings.

SOURCE = Path(fmkit.__file__).parent
MODULES = [
    ".".join(["fmkit", *file.relative_to(SOURCE).with_suffix("").parts])
    for file in sorted(SOURCE.rglob("*.py"))
    if ">>>" in file.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name):
    found = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, report=False
    )
    assert found.attempted
    assert not found.failed


def test_there_are_examples_to_hold():
    assert {"fmkit.paths.affine", "fmkit.paths.gaussian", "fmkit.registry", "fmkit.data.gaussians"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_can_show_the_examples(name):
    """In the Google style an example stands under `Examples:`; elsewhere the reference takes it for a quotation."""
    lines = inspect.getsource(importlib.import_module(name)).splitlines()
    firsts = [i for i, line in enumerate(lines) if line.lstrip().startswith(">>>") and not lines[i - 1].strip()]
    assert not [f"{name}, line {i + 1}" for i in firsts]
