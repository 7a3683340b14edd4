"""The README: its commands are those of the integration, its extras and links exist, its command lines work.

Its Python runs in tests/test_docs.py, and from the built wheel in tests/release/check_wheel.py.
"""

import re
import tomllib
from pathlib import Path

import pytest

from fmkit.cli import main
from fmkit.metrics.features import ClassifierSettings, classifier

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHELL = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line.partition("  #")[0].strip() for block in SHELL for line in block.splitlines()]


def fmkit_command(*words):
    with pytest.raises(SystemExit) as left:
        main([str(w) for w in words])
    return left.value.code


def test_the_integration_runs_the_test_command_of_the_readme():
    (command,) = [c for c in COMMANDS if "pytest" in c]
    assert command in (ROOT / ".ci/run").read_text().splitlines()


def test_what_the_readme_installs_exists():
    extras = {e for names in re.findall(r"\.\[([\w,]+)\]", README) for e in names.split(",")}
    groups = set(re.findall(r"--group (\w+)", README))
    assert extras
    assert extras <= set(PROJECT["project"]["optional-dependencies"])
    assert groups
    assert groups <= set(PROJECT["dependency-groups"])


def test_the_promised_extras_exist():
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"data", "plot", "ot", "tensorboard", "all"} <= set(extras)
    (everything,) = extras["all"]
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == set(extras) - {"all"}


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", README)
    assert any(link.endswith("extending.md") for link in links)
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_no_page_pins_a_build_of_torch_or_names_a_registry(page):
    text = page.read_text()
    assert not re.search(r"torch==|pypi\.org|index-url", text)


def test_the_command_lines_of_the_readme_do_what_they_say(tmp_path, monkeypatch, capsys):
    """All of one block, in its order, in one folder; only made shorter."""
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in SHELL if "fmkit train moons" in b]
    lines = [line.partition("  #")[0].partition(" > ")[0].split() for line in block.splitlines()]
    Path("my.yaml").write_text("data: {name: moons, n_test: 20}\ntrainer: {steps: 2}\n")
    tiny = ["trainer.batch_size=32", "field=mlp", "field.width=8", "field.depth=1", "data.n_test=20"]
    for _, command, *words in lines:
        if command == "train" and "/" not in words[0]:  # a resumed run keeps its numbers
            short = [re.sub(r"steps=2000", "steps=2", w) for w in words]
            words = [*short, *tiny, "--quiet"]
        if words[0] == "my.yaml":
            words += ["--out", "runs/my"]
        assert fmkit_command(command, *words) == 0, words
    assert Path("samples.npz").exists()
    assert "solver:\n  name: rk4\n  steps: 20\n" in Path("runs/my/config.yaml").read_text()
    assert "path: vp\n" in Path("runs/moons/config.yaml").read_text()


def test_the_commands_for_images_do_what_they_say(tmp_path, monkeypatch):
    """Of fewer steps and images; of the experiment, only that it is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path))
    few = ClassifierSettings(steps=10)
    monkeypatch.setattr("fmkit.image_evaluation.classifier", lambda split, **options: classifier(split, few, **options))
    asked = []
    monkeypatch.setattr("fmkit.cli.paper.run_cells", lambda protocol, *_, **__: asked.append(protocol) or [])
    (block,) = [b for b in SHELL if "fmkit bench" in b]
    tiny = ["trainer.steps=2", "trainer.batch_size=8", "field.channels=8", "solver={name: euler, steps: 1}", "--quiet"]
    for line in block.splitlines():
        _, command, *words = line.partition("  #")[0].replace(" 1000", " 80").split()
        more = {"train": tiny, "bench": ["--json"]}.get(command, [])
        assert fmkit_command(command, *words, *more) == 0, words
    assert Path("threes.png").exists()
    assert "recognised" in Path("runs/digits-classes/images.json").read_text()
    assert [(p.data, p.budget) for p in asked] == [("digits", 120.0)]
