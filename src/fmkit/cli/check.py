"""`fmkit plugins check`: a registered part, built with its defaults, under the laws of its kind."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fmkit import registry
from fmkit.cli.plugins import _find
from fmkit.errors import ArgumentError, FmkitError

# What the kit may fill in by itself: the shape of the points it draws.
SUPPLIED = {"event_shape": (3,)}
DEPTH = 2  # parts within parts that are built for want of an argument


def check_named(name: str, arguments: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Check one part by its name.

    Args:
        name: as `vp`, `paths/vp`, `package/name` or `kind/package/name`.
        arguments: constructor arguments as plain data; one that is missing and is a part is the first registered one
            that can be built.

    Returns:
        One mapping for each law: part, kind, id, law, status ("passed", "failed", "unchecked"), measured, bound, line.

    Raises:
        RegistryError: if no part has that name, or several have.
        PluginLoadError: if its package is broken.
        ArgumentError: if there are no laws for its kind, or it needs arguments that cannot be guessed: which they are.
        ConfigError: if an argument given does not fit.
    """
    from fmkit import testing

    entry = _find(name)
    cls = entry.load()
    if not (inspect.isclass(cls) and testing.has_kit(cls)):
        raise ArgumentError(
            f"there are no laws for {entry.label}; paths, solvers, fields, couplings and objectives have some"
        )
    report = testing.check(_build(entry, arguments or {}, DEPTH))
    label = {"part": entry.qualified, "kind": entry.kind}
    return [{**label, **finding.as_dict()} for finding in report.findings]


def _build(entry: registry.Entry, arguments: Mapping[str, Any], depth: int) -> Any:
    from fmkit import specs
    from fmkit.parts import parameters_of

    cls, values, lacking = entry.load(), dict(arguments), []
    for name, parameter in parameters_of(cls).items():
        if name in values or parameter.default is not parameter.empty:
            continue
        if name in SUPPLIED:
            values[name] = list(SUPPLIED[name])
        elif (part := _any_of(parameter.annotation, depth)) is not None:
            values[name] = part
        else:
            shown = inspect.formatannotation(parameter.annotation)
            lacking.append(name if parameter.annotation is parameter.empty else f"{name}: {shown}")
    if lacking:
        raise ArgumentError(
            f"{entry.label} needs {', '.join(lacking)}; hand the argument over, or use fmkit.testing from Python"
        )
    return specs.build_class(cls, values, entry.qualified, specs.Context())


def _any_of(annotation: Any, depth: int) -> Any:
    """Some registered part of a kind that the annotation admits, those that need the fewest parts first; or None."""
    from fmkit import specs
    from fmkit.parts import parameters_of

    if depth == 0:
        return None
    for kind in specs.kinds_in(annotation):
        simple = []
        for entry in registry.entries(kind.group):
            try:
                needs = [p for p in parameters_of(entry.load()).values() if p.default is p.empty]
                simple.append((len(needs), sum(bool(specs.kinds_in(p.annotation)) for p in needs), entry))
            except FmkitError:
                continue
        for _, _, entry in sorted(simple, key=lambda s: s[1::-1]):
            try:
                return _build(entry, {}, depth - 1)
            except FmkitError:
                continue
    return None


def ok(rows: list[dict[str, Any]]) -> bool:
    """Whether some law was checked and none is broken."""
    return any(r["status"] == "passed" for r in rows) and not any(r["status"] == "failed" for r in rows)


def show(rows: list[dict[str, Any]]) -> str:
    """The same for people: a line for each law, those that are broken last, and a verdict."""
    order = {"passed": 0, "unchecked": 1, "failed": 2}
    lines = [r["line"] for r in sorted(rows, key=lambda r: order[r["status"]])]
    counts = {status: sum(r["status"] == status for r in rows) for status in order}
    verdict = f"{counts['passed']} laws hold, {counts['failed']} broken, {counts['unchecked']} not checked"
    return "\n".join([*lines, f"{rows[0]['part']} ({rows[0]['kind']}): {verdict}"])
