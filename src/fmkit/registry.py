"""Which parts are installed, and who provides them.

Parts are entry points in groups named after their kind (`fmkit.paths`, `fmkit.solvers`, ...). fmkit lists its own in
the same table of its own pyproject.toml: there is no second way in. Listing reads metadata and imports nothing;
`load` imports the one part asked for. A bare name belongs to fmkit if fmkit has it (no plugin can take it over), else
to the one package that provides it; `package/name` always works.
"""

from __future__ import annotations

import functools
import importlib.metadata as metadata
import re
from dataclasses import dataclass
from typing import Any

from fmkit.errors import PluginLoadError, RegistryError, did_you_mean

HOME = "fmkit"


@dataclass(frozen=True)
class Entry:
    """One registered part: where it is, and who provides it."""

    group: str
    name: str
    value: str
    package: str
    version: str
    requires: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The last word of the group: `"paths"`."""
        return self.group.rsplit(".", 1)[-1]

    @property
    def label(self) -> str:
        """For messages: `"path 'vp' of fmkit 0.1.0"`."""
        return f"{_singular(self.group)} {self.name!r} of {self.package} {self.version}"

    @property
    def qualified(self) -> str:
        """`package/name`, which addresses this entry whatever else is installed."""
        return f"{self.package}/{self.name}"

    def check_version(self) -> None:
        """Refuse, before anything is imported, a plugin that declares a range this fmkit is not in.

        Raises:
            PluginLoadError: naming the plugin, its range and this fmkit's version.
        """
        from packaging.requirements import Requirement

        for line in self.requires:
            requirement = Requirement(line)
            if _normal(requirement.name) != HOME or (requirement.marker and not requirement.marker.evaluate()):
                continue
            here = metadata.version(HOME)
            if not requirement.specifier.contains(here, prereleases=True):
                raise PluginLoadError(
                    f"{self.label} needs fmkit{requirement.specifier}, this is fmkit {here}; upgrade one of the two"
                )

    def load(self) -> Any:
        """Import the part.

        Raises:
            PluginLoadError: naming the package, if it does not fit this fmkit or cannot be imported.
        """
        self.check_version()
        try:
            return metadata.EntryPoint(self.name, self.value, self.group).load()
        except Exception as error:
            raise PluginLoadError(
                f"{self.label} cannot be imported from {self.value}: "
                f"{type(error).__name__}: {error}; repair or uninstall {self.package}"
            ) from error


def _singular(group: str) -> str:
    return group.rsplit(".", 1)[-1].removesuffix("s").replace("_", " ")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):  # fmkit.arguments would bring torch, and listing is to do without
        raise RegistryError(f"{name} is {value!r}, expected text, as 'fmkit.paths' or 'condot'")
    return value


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


@functools.cache
def _scan() -> tuple[Entry, ...]:
    found: dict[tuple[str, str, str], Entry] = {}
    for distribution in metadata.distributions():
        points = [p for p in distribution.entry_points if p.group.startswith(f"{HOME}.")]
        if not points:
            continue
        package = _normal(distribution.metadata["Name"])
        requires = () if package == HOME else tuple(distribution.requires or ())
        for point in points:
            key = (point.group, package, point.name)
            # An editable install can be found twice on sys.path; the first one is the one that is imported.
            found.setdefault(key, Entry(point.group, point.name, point.value, package, distribution.version, requires))
    return tuple(sorted(found.values(), key=lambda e: (e.group, e.package != HOME, e.package, e.name)))


def refresh() -> None:
    """Look again at what is installed, after a `pip install` in a running interpreter."""
    _scan.cache_clear()
    _named.cache_clear()


def entries(group: str | None = None) -> list[Entry]:
    """Everything registered, or everything in one group as `"fmkit.paths"`; imports nothing."""
    if group is not None:
        _text("group", group)
    return [e for e in _scan() if group in (None, e.group)]


def groups() -> list[str]:
    """Every group that some installed package provides parts in."""
    return sorted({e.group for e in _scan()})


def find(group: str, name: str) -> Entry:
    """The entry that `name` means in `group`, without importing it.

    Raises:
        RegistryError: if nothing has that name (with the closest one), two have (naming both), or it is no text.
    """
    there = entries(_text("group", group))
    kind = _singular(group)
    package, _, bare = _text("name", name).replace("_", "-").rpartition("/")
    hits = [e for e in there if e.name.replace("_", "-") == bare and (not package or e.package == _normal(package))]
    if not hits:
        known = {e.qualified if package else e.name for e in there}
        raise RegistryError(f"no {kind} named {name!r} is installed{did_you_mean(name, known)}")
    if len(hits) == 1 or hits[0].package == HOME:
        return hits[0]
    owners = " and ".join(f"{e.package} {e.version}" for e in hits)
    raise RegistryError(
        f"{kind} {name!r} is provided by {owners}; write " + " or ".join(repr(e.qualified) for e in hits)
    )


def load(group: str, name: str) -> Any:
    """Import the part called `name` in `group`.

    Examples:
        >>> load("fmkit.paths", "condot").__name__
        'CondOT'

    Raises:
        RegistryError: if the name is unknown or ambiguous.
        PluginLoadError: if the plugin behind it is broken.
    """
    return find(group, name).load()


@functools.cache
def _named(cls: type) -> str | None:
    for entry in entries(getattr(cls, "group", "")):
        # Only an entry whose last name fits is imported: naming one part must not load every plugin.
        if entry.value.partition(":")[2] == cls.__qualname__ and _is_loaded_from(entry, cls):
            bare = find_or_none(entry.group, entry.name)
            return entry.name if bare == entry else entry.qualified
    return None


def _is_loaded_from(entry: Entry, cls: type) -> bool:
    try:
        return entry.load() is cls
    except PluginLoadError:
        return False


def find_or_none(group: str, name: str) -> Entry | None:
    """`find`, or None where it would raise."""
    try:
        return find(group, name)
    except RegistryError:
        return None


def name_of(cls: type) -> str | None:
    """The registered name of a part's class, or None if no installed package provides it.

    Examples:
        >>> import fmkit
        >>> name_of(fmkit.paths.CondOT)
        'condot'
    """
    if not isinstance(cls, type):
        raise RegistryError(f"cls is {cls!r}, expected a class")
    return _named(cls)
