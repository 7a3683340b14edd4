"""The registry: lazy, read-only, and plain about who provides what."""

import subprocess
import sys
import textwrap

import pytest

import fmkit
from fmkit import registry
from fmkit.errors import ConfigError, PluginLoadError, RegistryError

PATH = """
from fmkit.paths import AffinePath

class Smooth(AffinePath):
    def alpha(self, t):
        return 3 * t**2 - 2 * t**3

    def sigma(self, t):
        return 1 - self.alpha(t)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs packages that exist for one test: a module and the metadata that pip would write."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(package, entry_points, code=PATH, requires=(), version="1.2"):
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}"]
        lines += [f"Requires-Dist: {r}" for r in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        table = "".join(f"[{group}]\n{name} = {value}\n" for group, name, value in entry_points)
        (info / "entry_points.txt").write_text(table)
        registry.refresh()

    yield install
    monkeypatch.undo()
    for name in ("acme_fm", "other_fm", "broken_fm", "old_fm"):
        sys.modules.pop(name, None)
    registry.refresh()


SMOOTH = ("fmkit.paths", "smooth", "acme_fm:Smooth")


def test_an_installed_path_is_found_by_name_and_by_package(install):
    install("acme-fm", [SMOOTH])
    assert registry.load("fmkit.paths", "smooth") is registry.load("fmkit.paths", "acme-fm/smooth")
    entry = registry.find("fmkit.paths", "smooth")
    assert (entry.package, entry.version, entry.kind, entry.qualified) == ("acme-fm", "1.2", "paths", "acme-fm/smooth")
    assert registry.name_of(entry.load()) == "smooth"


def test_package_names_are_normalised(install):
    install("Acme.FM", [("fmkit.paths", "smooth", "acme_fm:Smooth")], version="1.3")
    assert registry.find("fmkit.paths", "Acme_FM/smooth").package == "acme-fm"


def test_listing_imports_nothing(install):
    install("broken-fm", [("fmkit.paths", "wreck", "broken_fm:Wreck")], code="raise ImportError('no such library')")
    assert "wreck" in {e.name for e in registry.entries("fmkit.paths")}
    assert "broken_fm" not in sys.modules


def test_a_broken_plugin_breaks_only_itself_and_is_named(install):
    install("broken-fm", [("fmkit.paths", "wreck", "broken_fm:Wreck")], code="raise ImportError('no such library')")
    assert registry.load("fmkit.paths", "condot") is fmkit.paths.CondOT
    with pytest.raises(PluginLoadError, match=r"path 'wreck' of broken-fm 1.2 .* no such library; repair or uninstall"):
        registry.load("fmkit.paths", "wreck")


def test_a_missing_attribute_is_a_broken_plugin(install):
    install("acme-fm", [("fmkit.paths", "smooth", "acme_fm:Smoth")])
    with pytest.raises(PluginLoadError, match=r"of acme-fm 1.2 cannot be imported from acme_fm:Smoth"):
        registry.load("fmkit.paths", "smooth")


def test_two_packages_with_one_name_are_both_named(install):
    install("acme-fm", [SMOOTH])
    install("other-fm", [("fmkit.paths", "smooth", "other_fm:Smooth")])
    with pytest.raises(
        RegistryError, match=r"acme-fm 1.2 and other-fm 1.2; write 'acme-fm/smooth' or 'other-fm/smooth'"
    ):
        registry.load("fmkit.paths", "smooth")
    ours = registry.load("fmkit.paths", "other-fm/smooth")
    assert ours.__module__ == "other_fm"
    assert registry.name_of(ours) == "other-fm/smooth"


def test_a_built_in_name_cannot_be_taken_over(install):
    install("acme-fm", [("fmkit.paths", "condot", "acme_fm:Smooth")])
    assert registry.load("fmkit.paths", "condot") is fmkit.paths.CondOT
    assert registry.load("fmkit.paths", "acme-fm/condot").__name__ == "Smooth"


@pytest.mark.parametrize(
    ("requires", "fits"),
    [
        (["fmkit>=0.1,<0.2"], True),
        (["fmkit"], True),
        (["fmkit>=99"], False),
        (["FMkit <0.1"], False),
        (["fmkit>=99; python_version < '3'"], True),
        (["numpy>=99"], True),
    ],
)
def test_the_declared_range_is_checked_before_the_import(install, requires, fits):
    install("old-fm", [("fmkit.paths", "old", "old_fm:Smooth")], requires=requires)
    if fits:
        assert registry.load("fmkit.paths", "old").__name__ == "Smooth"
    else:
        with pytest.raises(PluginLoadError, match=rf"old-fm 1.2 needs fmkit.*this is fmkit {fmkit.__version__}"):
            registry.load("fmkit.paths", "old")
        assert "old_fm" not in sys.modules


def test_an_unknown_name_says_which_is_closest():
    with pytest.raises(RegistryError, match=r"no path named 'condott' is installed; did you mean 'condot'\?"):
        registry.find("fmkit.paths", "condott")
    with pytest.raises(RegistryError, match=r"no solver named 'zzz' is installed; known: ab2, "):
        registry.find("fmkit.solvers", "zzz")


def test_underscores_are_hyphens():
    assert registry.load("fmkit.paths", "linear_vp") is fmkit.paths.LinearVP


def test_every_part_of_fmkit_comes_through_entry_points_and_loads():
    ours = [e for e in registry.entries() if e.package == "fmkit"]
    assert len(ours) > 60
    for entry in ours:
        part = entry.load()
        if entry.kind != "recipes":
            assert part.group == entry.group
            assert registry.name_of(part) == entry.name


REGISTERED = {
    "paths": "condot vp ve cosine polynomial linear-vp icfm schrodinger-bridge",
    "objectives": "velocity data noise score scoreflow",
    "solvers": "euler midpoint heun rk3 rk4 ab2 ab3 ab4 abm3 abm4 dopri5 dopri8 bosh3 adaptive-heun "
    "torchdiffeq-euler torchdiffeq-midpoint torchdiffeq-rk4 scipy-dop853 scipy-radau scipy-lsoda "
    "euler-maruyama heun-sde",
    "couplings": "independent ot",
    "fields": "mlp",
    "sources": "gaussian uniform empirical",
    "time_samplers": "uniform logit-normal u-shaped",
    "datasets": "digits moons 8gaussians checkerboard scurve pinwheel rings gaussian-mixture tabular",
}


@pytest.mark.parametrize("kind", REGISTERED)
def test_the_promised_names_are_registered(kind):
    names = {e.name for e in registry.entries(f"fmkit.{kind}") if e.package == "fmkit"}
    assert set(REGISTERED[kind].split()) <= names


def test_a_config_names_a_plugin_and_a_wrong_parameter_is_located(install):
    code = PATH.replace(
        "    def alpha", "    def __init__(self, power: float = 2.0):\n        super().__init__()\n\n    def alpha", 1
    )
    install("acme-fm", [SMOOTH], code=code)
    from fmkit.paths import ProbabilityPath
    from fmkit.specs import build, describe

    path = build(ProbabilityPath, {"name": "smooth", "power": 3.0}, "path")
    assert describe(path) == {"name": "smooth", "power": 3.0}
    with pytest.raises(ConfigError, match=r"path.pwer: Smooth has no parameter 'pwer'; did you mean 'power'\?"):
        build(ProbabilityPath, {"name": "smooth", "pwer": 3.0}, "path")
    with pytest.raises(ConfigError, match=r"path.power: got 'x', expected a valid number"):
        build(ProbabilityPath, {"name": "smooth", "power": "x"}, "path")


def run(program):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)


def test_importing_fmkit_loads_no_torch_and_no_plugin():
    done = run("""
        import sys, fmkit, fmkit.registry
        fmkit.registry.entries()
        heavy = {"torch", "numpy", "scipy", "pydantic", "rich"} & set(sys.modules)
        plugins = {e.value.split(":")[0].split(".")[0] for e in fmkit.registry.entries()} - {"fmkit"}
        assert not heavy, heavy
        assert not plugins & set(sys.modules)
    """)
    assert done.returncode == 0, done.stderr


def test_importing_fmkit_changes_nothing_in_torch():
    done = run("""
        import torch, warnings
        before = torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state(), list(warnings.filters)
        import fmkit
        [getattr(fmkit, name) for name in fmkit.__all__]
        after = torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state(), list(warnings.filters)
        assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    """)
    assert done.returncode == 0, done.stderr
