"""Mutation testing of the numerical core: which wrong programs would the tests let pass?

    python -m pip install -e '.[all]' --group test --group mutation
    python tests/mutation/run.py paths/affine solvers/sde    # some modules; all of them by default

One module at a time, over the fast tests of that module alone. Two tools share the work. mutmut mutates the bodies of
functions and forks for each mutant, about ten a second, but leaves alone what runs at import or under a decorator
((tableaux, class attributes, constants, properties); there cosmic-ray mutates, with a process for each mutant. Messages
of errors are left out. What is answered already is kept under build/mutation, so a run that was interrupted goes on
where it was. Of a module that has changed, mutmut takes the functions afresh that have, and all other mutants are tried
again; when only tests have changed, what they killed counts as killed still, and survivors are tried again.

The record is RESULTS.md beside this file. Reasons for survivors are written into it by hand, and a later run keeps them
wherever the same line survives the same change. Exits with 1 if a survivor has no reason.
"""

from __future__ import annotations

import argparse
import ast
import collections
import datetime
import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BUILD, RECORD = ROOT / "build" / "mutation", Path(__file__).with_name("RESULTS.md")
BIN = Path(sys.executable).parent
TIMEOUT = 300  # seconds for one mutant, in a process of its own

# Each module, and the tests it has to stand up to, its own first.
MODULES = {
    "paths/base": "paths/test_base.py paths",
    "paths/affine": "paths",
    "paths/transport": "paths/test_transport.py paths",
    "paths/diffusion": "paths/test_diffusion.py paths",
    "paths/bridge": "paths/test_bridge.py paths",
    "paths/gaussian": "paths/test_gaussian.py paths",
    "sources": "test_sources.py laws/test_bad_inputs.py",
    "couplings/base": "couplings laws/test_bad_inputs.py",
    "couplings/independent": "couplings/test_independent.py couplings",
    "couplings/optimal_transport": "couplings/test_optimal_transport.py couplings",
    "couplings/assignment": "couplings/test_assignment.py",
    "couplings/nearest": "couplings/test_nearest.py",
    "couplings/conditional": "couplings/test_conditional.py",
    "couplings/semidiscrete": "couplings/test_semidiscrete.py",
    "couplings/conditional_semidiscrete": "couplings/test_conditional_semidiscrete.py",
    "couplings/sinkhorn": "couplings/test_sinkhorn.py",
    "fields/base": "fields/test_base.py",
    "fields/guidance": "fields/test_guidance.py",
    "fields/rescheduling": "fields/test_rescheduling.py",
    "objectives/regression": "objectives/test_regression.py",
    "objectives/times": "objectives/test_times.py",
    "solvers/base": "solvers/test_base.py solvers/test_fixed_step.py",
    "solvers/fixed_step": "solvers/test_base.py solvers/test_fixed_step.py",
    "solvers/grids": "solvers/test_grids.py solvers/test_fixed_step.py",
    "solvers/refinement": "solvers/test_refinement.py",
    "solvers/runge_kutta": "solvers/test_runge_kutta.py",
    "solvers/multistep": "solvers/test_multistep.py",
    "solvers/torchdiffeq": "solvers/test_torchdiffeq.py solvers/test_base.py",
    "solvers/scipy": "solvers/test_scipy.py solvers/test_base.py",
    "solvers/sde": "solvers/test_sde.py",
    "arguments": "test_arguments.py",
    "quadrature": "test_quadrature.py",
    "shapes": "test_shapes.py paths/test_base.py laws/test_bad_inputs.py",
    "transforms": "test_transforms.py",
    "differentiation": "test_differentiation.py",
    "divergence": "test_divergence.py",
    "likelihood": "test_likelihood.py",
    "adjoint": "test_adjoint.py",
    "flow": "test_flow.py",
    "oracle/mixture": "oracle/test_mixture.py",
    "oracle/law": "oracle/test_law.py oracle/test_floor.py",
    "oracle/boxes": "oracle/test_law.py oracle/test_boxes.py data/test_laws.py",
    "oracle/posterior": "oracle",
    "oracle/field": "oracle/test_field.py oracle/test_floor.py",
    "oracle/floor": "oracle/test_floor.py oracle/test_field.py",
    "metrics/likelihood": "metrics/test_likelihood.py",
    "training/floors": "training/test_floors.py",
    "training/health": "training/test_health.py",
    "training/pairing": "training/test_pairing.py",
}

MUTMUT = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/fmkit/{module}.py"]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-n", "0", "-k", "not users_line"]  # mutmut's frames shift the line of a warning
do_not_mutate_patterns = ['raise \\w+Error\\(', '^\\s*f?"']
use_git_change_detection = false
timeout_multiplier = 20.0
timeout_constant = 5.0
"""

# Of cosmic-ray's operators, those that mutmut has too: one replacement each, and both neighbours of a number.
OPERATORS = (
    "NumberReplacer|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd|AddNot|"
    "ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_Invert)|"
    "ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul|FloorDiv_Div|BitAnd_BitOr|BitOr_BitAnd)|"
    "ReplaceComparisonOperator_(Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is)"
)


class Mutant(NamedTuple):
    """A change to a module.

    Attributes:
        name: of the change, among those of the module.
        status: how the tests took it: killed, survived, timeout; mutmut has words for rarer ends, and untried is one.
        line: where it is; and before and after. All empty where mutmut's forks killed it.
        code: the whole module, changed.
    """

    name: str
    status: str
    line: int = 0
    old: str = ""
    new: str = ""
    code: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="module", help="as paths/affine; all of the core by default")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once, of mutmut's")
    parser.add_argument("--fresh", action="store_true", help="forget earlier answers")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in ("pytest", "torchdiffeq", "scipy.integrate", "scipy.stats", "torch.func"):
        importlib.import_module(library)  # once, for all the processes that are forked
    unexplained = 0
    for module in options.modules or MODULES:
        mutants = run(module, options.jobs, options.fresh)
        counts = collections.Counter(mutant.status for mutant in mutants)
        alive = sorted((m for m in mutants if m.status != "killed"), key=lambda m: m.line)
        unexplained += record(module, counts, alive)
        print(f"{module}: {len(mutants)} mutants, {', '.join(f'{n} {status}' for status, n in counts.items())}")
        for m in alive:
            print(f"    {m.status} {module}.py:{m.line}\n      - {m.old}\n      + {m.new}", flush=True)
    return 1 if unexplained else 0


def run(module: str, jobs: int, fresh: bool) -> list[Mutant]:
    """All mutants of a module, with how its tests took them."""
    folder, source = BUILD / module.replace("/", "."), ROOT / "src" / "fmkit" / f"{module}.py"
    tests = [f"tests/{path}" for path in MODULES[module].split()]
    first, kept = folder / "first.json", folder / "source.py"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    elif kept.exists() and kept.read_text() != source.read_text():
        first.unlink(missing_ok=True)
    for name in ("src", "tests"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "mutation"))
    shutil.copy(source, kept)
    pyproject = (ROOT / "pyproject.toml").read_text() + MUTMUT.format(module=module, tests=json.dumps(tests))
    (folder / "pyproject.toml").write_text(pyproject)
    if tried(Mutant("unchanged", "untried", code=source.read_text()), module, folder, tests).status != "survived":
        raise SystemExit(f"the tests fail without any change: see {folder / 'log'}")
    if not first.exists():
        first.write_text(json.dumps([*inside_functions(module, folder, jobs), *outside_functions(module, folder)]))
    mutants = [Mutant(*m) for m in json.loads(first.read_text())]
    return [m if m.status in ("killed", "timeout") else tried(m, module, folder, tests) for m in mutants]


def tried(mutant: Mutant, module: str, folder: Path, tests: list[str]) -> Mutant:
    """A mutant's trial in a process of its own, unless these tests have had theirs, or others have killed it.

    mutmut's survivors come here too: its forks begin when the tests are imported already, and what a test module made
    at import was then made by the program as it should be. And tests may have been added since.
    """
    files = [f for path in tests for f in sorted(folder.glob(path if path.endswith(".py") else f"{path}/*.py"))]
    digest = hashlib.sha256(b"\0".join(f.read_bytes() for f in [folder / "tests" / "conftest.py", *files])).hexdigest()
    noted, source = folder / "tried.json", folder / "src" / "fmkit" / f"{module}.py"
    answers = json.loads(noted.read_text()) if noted.exists() else {}
    key = hashlib.sha256(mutant.code.encode()).hexdigest()
    status, by = answers.get(key, ("untried", ""))
    if status in ("untried", "survived") and by != digest:
        plain = source.read_text()
        try:
            source.write_text(mutant.code)
            Path(importlib.util.cache_from_source(str(source))).unlink(missing_ok=True)  # it may be of the same second
            child = multiprocessing.get_context("fork").Process(target=_test, args=(folder, tests))
            child.start()
            child.join(TIMEOUT)
            status = "timeout" if child.exitcode is None else "killed" if child.exitcode else "survived"
            child.kill()
        finally:
            source.write_text(plain)
        answers[key] = (status, digest)
        noted.write_text(json.dumps(answers))
    return mutant._replace(status=status)


def _test(folder: Path, tests: list[str]) -> None:
    """In a forked process, where fmkit is not imported yet: the exit status of the tests in a folder."""
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder / "src")
    sys.path.insert(0, str(folder / "src"))
    with (folder / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.exit(int(importlib.import_module("pytest").main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])))


def inside_functions(module: str, folder: Path, jobs: int) -> Iterator[Mutant]:
    """mutmut's mutants, after a first trial."""
    if _run([BIN / "mutmut", "run", "--max-children", str(jobs)], folder):
        said = (folder / "log").read_text()
        if "could not find any test case for any mutant" not in said:  # of a module without a function to mutate
            raise SystemExit(f"mutmut failed: see {folder / 'log'}")
    plain, made = ((folder / tree / "src" / "fmkit" / f"{module}.py").read_text() for tree in (".", "mutants"))
    for name, status in re.findall(r"^\s+(\S+): (.+)$", _call(["mutmut", "results", "--all", "true"], folder), re.M):
        if status == "killed":
            yield Mutant(name, status)
        else:
            code = _with(name, plain, made)
            yield Mutant(name, status, *_change(plain, code), code)


def _with(name: str, plain: str, made: str) -> str:
    """The module with one of mutmut's mutants in it. (`mutmut apply` takes the first function of that name for it.)"""
    mutant = name.rpartition(".")[2]
    original = mutant.rpartition("__mutmut_")[0]
    within, _, function = original[1:].strip("ǁ").rpartition("ǁ") if "ǁ" in original else ("", "", original[2:])

    def body(text: str, wanted: str) -> tuple[list[str], int, int]:
        tree = ast.parse(text)
        scopes = (
            [c.body for c in tree.body if isinstance(c, ast.ClassDef) and c.name == within] if within else [tree.body]
        )
        nodes = (n for n in scopes[0] if isinstance(n, ast.FunctionDef) and n.name == wanted)
        node = next(nodes)
        return text.splitlines(keepends=True), node.lineno - 1, node.end_lineno or node.lineno

    lines, first, last = body(plain, function)
    others, begin, end = body(made, mutant)
    return "".join([*lines[:first], *others[begin:end], *lines[last:]]).replace(f"def {mutant}(", f"def {function}(")


def outside_functions(module: str, folder: Path) -> Iterator[Mutant]:
    """cosmic-ray's mutants of what mutmut leaves alone, untried."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    plain = (folder / "src" / "fmkit" / f"{module}.py").read_text()
    spans = list(_left_alone(ast.parse(plain)))
    for name in operator_names():
        if re.fullmatch(f"core/({OPERATORS})", name):
            operator = get_operator(name)()
            places = [start for node in ast_nodes(get_ast(plain)) for start, _ in operator.mutation_positions(node)]
            for occurrence, (line, _) in enumerate(places):
                if any(first <= line <= last for first, last in spans):
                    code = mutate_code(plain, operator, occurrence)
                    yield Mutant(f"{name} {occurrence}", "untried", *_change(plain, code), code)


def _left_alone(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Lines that mutmut does not mutate: what runs at import, and functions under a decorator."""
    for node in [*tree.body, *(inner for c in tree.body if isinstance(c, ast.ClassDef) for inner in c.body)]:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and "__all__" not in ast.unparse(node):
            yield node.lineno, node.end_lineno or node.lineno
        elif isinstance(node, ast.FunctionDef) and node.decorator_list:
            if [ast.unparse(d) for d in node.decorator_list] in (["staticmethod"], ["classmethod"]):
                continue
            for statement in node.body:
                messages = [r for r in ast.walk(statement) if isinstance(r, ast.Raise)]
                text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                if not text and statement not in messages:
                    last = min([r.lineno - 1 for r in messages], default=statement.end_lineno or statement.lineno)
                    yield statement.lineno, last


def _change(plain: str, code: str) -> tuple[int, str, str]:
    """The first line that was changed, and what was changed, before and after."""
    rows = [*difflib.unified_diff(plain.splitlines(), code.splitlines(), n=0, lineterm="")][2:]
    old, new = (" ".join(row[1:].strip() for row in rows if row.startswith(sign)) for sign in "-+")
    return int(re.findall(r"\d+", rows[0])[0]), old, new


def record(module: str, counts: collections.Counter[str], alive: list[Mutant]) -> int:
    """Write the module's section of RESULTS.md anew, keeping reasons; how many of those alive have none."""
    text = RECORD.read_text() if RECORD.exists() else ""
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    reasons = dict(re.findall(r"^\| \d+ \| (.+) \| ([^|]*) \|$", sections.get(module, ""), re.MULTILINE))
    rows, missing = [], 0
    for m in alive:
        change = f"{_code(m.old)} → {_code(m.new)}" + (f" ({m.status})" if m.status != "survived" else "")
        reason = reasons.get(change, "").strip()
        missing += not reason
        rows.append(f"| {m.line} | {change} | {reason} |")
    figures = counts.total(), counts["killed"], counts["timeout"], len(alive) - counts["timeout"]
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    head = "\n{}, source {}: {} mutants, {} killed, {} timed out, {} survived.\n".format(
        today, _digest(module), *figures
    )
    table = ["", "| line | change | reason |", "|---|---|---|", *rows, ""] if rows else [""]
    sections[module] = head + "\n".join(table) + "\n"
    RECORD.write_text(_head(sections) + "".join(f"## {m}\n{sections[m]}" for m in MODULES if m in sections))
    return missing


def _digest(module: str) -> str:
    """Which source a run was of."""
    return hashlib.sha256((ROOT / "src" / "fmkit" / f"{module}.py").read_bytes()).hexdigest()[:8]


def _code(text: str) -> str:
    return "`" + text.replace("|", "∣") + "`"


def _head(sections: dict[str, str]) -> str:
    """The record's beginning: how it was made, and a table of all modules."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mutmut", "cosmic-ray", "torch"))
    rows, sums = [], [0, 0, 0, 0]
    for module in MODULES:
        counted = re.search(r"(\d+) mutants, (\d+) killed, (\d+) timed out, (\d+) survived", sections.get(module, ""))
        if counted:
            figures = [int(figure) for figure in counted.groups()]
            sums = [a + b for a, b in zip(sums, figures, strict=True)]
            changed = "" if f"source {_digest(module)}:" in sections[module] else " (changed since)"
            rows.append(_row(f"`{module}`{changed}", figures))
    lines = [
        "# Mutation testing",
        "",
        "Written by `python tests/mutation/run.py`, which says what it does; the reasons are written by hand. A mutant",
        "that makes a program endless ends in a timeout, which counts as killed; all timeouts are listed all the same.",
        "A survivor marked open is one that a test should tell and none does yet."
        f" Python {sys.version.split()[0]}, {versions}.",
        "",
        "| module | mutants | killed | timeouts | survived | score |",
        "|---|---|---|---|---|---|",
        *rows,
        _row("**all**", sums),
        "",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, figures: list[int]) -> str:
    total, killed, timeouts, survived = figures
    score = 100 * (killed + timeouts) / total if total else 100.0
    return f"| {name} | {total} | {killed} | {timeouts} | {survived} | {score:.1f} % |"


def _call(command: Sequence[str], folder: Path) -> str:
    """The output of one of the tools' commands, run in a folder."""
    if _run([BIN / command[0], *command[1:]], folder):
        raise SystemExit(f"{' '.join(command)} failed: see {folder / 'log'}")
    return (folder / "output").read_text()


def _run(command: Sequence[str | Path], folder: Path) -> int:
    """The exit status of a command, run in a folder with that folder's fmkit; what it says goes to files there."""
    env = {**os.environ, "PYTHONPATH": str(folder / "src"), "NO_COLOR": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, check=False)
    (folder / "output").write_text(done.stdout)
    with (folder / "log").open("a") as log:
        log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
