"""One typed configuration of a run: what a YAML file, a recipe and the command line's `key=value` words add up to.

A part is a name, or `{name: ..., its parameters}`, nested where a parameter is a part. Layers are laid over each other:
recipe, file, words; a new name for a part drops the parameters of the old one. Every value remembers where it came
from, so a mistake is reported with its place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fmkit.arguments import checked
from fmkit.errors import ArgumentError, ConfigError, FmkitError
from fmkit.saving import reason

if TYPE_CHECKING:
    from fmkit.data import Split
    from fmkit.training import Engine, Trainer

PartSpec = str | dict[str, Any]
DEEPEST = 50  # parts within parts


class RunConfig(pydantic.BaseModel):
    """Everything that decides a run.

    Attributes:
        data: the data set.
        path, source, coupling, objective, field, solver: the parts of the same names.
        time: the objective's time sampler.
        callbacks: beside the progress bar and the telemetry.
        engine: what carries the training over processes; by default `ddp` under torchrun or srun, `single` else.
        trainer: `fmkit.Settings`, but for the seed.
        seed: every random draw follows from it.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    data: PartSpec
    path: PartSpec = "condot"
    source: PartSpec = "gaussian"
    coupling: PartSpec = "independent"
    time: PartSpec = "uniform"
    objective: PartSpec = "velocity"
    field: PartSpec = "mlp"
    solver: PartSpec = "dopri5"
    callbacks: list[PartSpec] = []
    engine: PartSpec | None = None
    trainer: dict[str, Any] = {}
    seed: int = pydantic.Field(0, ge=0)

    def __init__(self, **values: Any) -> None:
        from fmkit.training.settings import mistake

        for key, value in values.items():
            check_plain(value, key)
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = str(first["loc"][0])
            if first["type"] == "missing":
                raise ConfigError("missing; a run needs data", place) from None
            said = mistake(error, type(self).model_fields)[1]
            if first["type"] != "extra_forbidden" and "PartSpec" not in said and place not in ("trainer", "seed"):
                said = f"got {values[place]!r}, expected a name or a mapping with a name"
            raise ConfigError(said, place) from None


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Refuse what no configuration holds: YAML also knows dates, bytes, sets, keys that are no text, and loops.

    Raises:
        ConfigError: naming the dotted key.
    """
    if depth > DEEPEST:
        raise ConfigError(f"nested more than {DEEPEST} deep, or inside itself", where.split(".")[0])
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"has a key {key!r}, expected text", where)
            check_plain(inner, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_plain(inner, f"{where}.{i}", depth + 1)
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise ConfigError(f"got {value!r}, expected a number, text, a list or a mapping", where)


@dataclass
class Layers:
    """Plain data that knows where each value came from.

    Attributes:
        values: the nested data.
        origins: the place of each dotted key, as "my.yaml, line 3".
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, origin: str) -> None:
        """Lay one value over what is there. A part's new name drops the parameters of the old one."""
        *parents, last = key.split(".")
        there = self.values
        for i, parent in enumerate(parents):
            inner = there.get(parent)
            if isinstance(inner, str):  # a part that was just a name so far
                inner = there[parent] = {"name": inner}
            elif inner is None:
                inner = there[parent] = {}
            if not isinstance(inner, dict):
                place = ".".join(parents[: i + 1])
                raise ConfigError(f"{place} is {inner!r}, which has nothing inside it ({origin})", key)
            there = inner
        if last == "name" and parents and there.get("name", value) != value:
            there.clear()
        there[last] = value
        self.origins.pop(key, None)  # so that the newest stands last
        self.origins[key] = origin

    def merge(self, values: Mapping[str, Any], origin: Any, prefix: str = "") -> None:
        """Lay a whole mapping over what is there; `origin` gives the place of a dotted key."""
        names_first = sorted(values.items(), key=lambda item: item[0] != "name")
        for key, value in names_first:
            dotted = f"{prefix}{key}"
            if isinstance(value, Mapping) and value:
                if "name" in value and self._at(dotted) != value["name"]:
                    self.put(dotted, str(value["name"]), origin(dotted))
                self.merge(value, origin, f"{dotted}.")
            else:
                self.put(dotted, value, origin(dotted))

    def _at(self, key: str) -> Any:
        there: Any = self.values
        for word in key.split("."):
            there = there.get(word) if isinstance(there, dict) else None
        return there.get("name") if isinstance(there, dict) else there

    def place(self, key: str) -> str:
        """Where the newest value at or inside `key`, or the nearest thing above it, came from; "" for a default."""
        while key:
            inside = [place for k, place in self.origins.items() if k == key or k.startswith(f"{key}.")]
            if inside:
                return inside[-1]
            key = key.rpartition(".")[0]
        return ""


@checked
def load_layers(base: Mapping[str, Any], file: str | Path | None, words: Sequence[str], name: str = "") -> Layers:
    """The layers of a run: a recipe's values, a file, and `key=value` words.

    Raises:
        ConfigError: for a file that cannot be read, or a word that is no `key=value`.
    """
    # The defaults of parts lie at the bottom, so that a parameter alone, field.width=64, finds its part.
    layers = Layers({k: f.default for k, f in RunConfig.model_fields.items() if isinstance(f.default, str)})
    layers.merge(base, lambda key: f"the recipe {name}")
    if file is not None:
        values, line = read_file(file)
        layers.merge(values, lambda key: f"{file}, line {line(key)}")
    # Names first: `path.beta_max=5 path.name=vp` means the same in either order.
    for word in sorted(words, key=lambda w: not _is_name(w)):
        key, value = read_word(word)
        layers.merge({key: value} if not isinstance(value, Mapping) else _nest(key, value), lambda _, w=word: f"{w!r}")
    return layers


@checked
def read_word(word: str) -> tuple[str, Any]:
    """The dotted key of a `key=value`, and the value as YAML reads it.

    Raises:
        ConfigError: if it is none, or the value is no YAML.
    """
    key, equals, text = word.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(f"{word!r} is no key=value, as trainer.steps=2000")
    return key, parsed(text, key) if text else None


@checked
def read_file(path: str | Path) -> tuple[dict[str, Any], Any]:
    """The values of a YAML 1.2 (or JSON) file, and a function from dotted key to line number.

    Raises:
        ConfigError: if it is missing, or not a mapping in YAML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read the configuration {path}: not UTF-8 text") from None
    except (OSError, ValueError) as error:  # a ValueError: a name that no file system allows
        raise ConfigError(f"cannot read the configuration {path}: {reason(error)}") from None
    try:
        marked = _yaml("rt").load(text)
        values = _yaml("safe").load(text)
        check_plain(values, str(path))
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or 'not valid YAML'}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected a mapping like `data: digits`")

    def line(key: str) -> int:
        there, found = marked, 0
        for word in key.split("."):
            try:
                found, there = there.lc.key(word)[0], there[word]
            except (KeyError, AttributeError, TypeError):
                break
        return found + 1

    return values, line


@checked
def validate(layers: Layers) -> RunConfig:
    """The typed configuration.

    Raises:
        ConfigError: naming the key, what was got, what would be right, and where it stands.
    """
    try:
        return RunConfig(**layers.values)
    except ConfigError as error:
        raise located(error, layers) from None


def located(error: ConfigError, layers: Layers) -> ConfigError:
    """The error with the place its value came from."""
    place = layers.place(error.where)
    return ConfigError(f"{error.said} ({place})" if place else error.said, error.where)


@dataclass
class Job:
    """A configuration made real."""

    config: RunConfig
    split: Split
    trainer: Trainer
    engine: Engine


@checked
def assemble(layers: Layers, progress: bool = True) -> Job:
    """Load the data and build the parts of a run.

    Raises:
        ConfigError: for any mistake in the configuration.
        CombinationError: for parts that have no meaning together.
    """
    config = validate(layers)
    try:
        return _assemble(config, progress)
    except ConfigError as error:
        raise located(error, layers) from error


def _assemble(config: RunConfig, progress: bool) -> Job:
    from fmkit import couplings, data, fields, objectives, paths, solvers, sources, training
    from fmkit.specs import Context, build

    settings = settings_of(config)
    path = build(paths.ProbabilityPath, config.path, "path")
    source = build(sources.Source, config.source, "source")
    coupling = build(couplings.Coupling, config.coupling, "coupling")
    time = build(objectives.TimeSampler, config.time, "time")
    objective = build(objectives.Objective, config.objective, "objective", Context(supplied={"time": time}))
    solver = build(solvers.Solver, config.solver, "solver")
    callbacks = [build(training.Callback, c, f"callbacks.{i}") for i, c in enumerate(config.callbacks)]
    engine = training.engine_of_environment()
    if config.engine is not None:
        engine = build(training.Engine, config.engine, "engine")
    objective.check(path, source, coupling)
    dataset = build(data.DataSet, config.data, "data")
    try:
        split = dataset.load(config.seed)
    except FmkitError as error:
        raise ConfigError(str(error), "data") from error
    cond = split.train.cond
    supplied = {
        "event_shape": split.event_shape,
        "classes": split.classes,
        "cond_dim": cond.shape[1] if cond is not None and split.classes is None and cond.ndim == 2 else None,
        "cond_channels": cond.shape[1] if cond is not None and cond.ndim == 4 else None,
    }
    with _seeded(config.seed):
        network = build(fields.VectorField, config.field, "field", Context(supplied=supplied))
    callbacks = [*([training.Progress()] if progress else []), training.Telemetry(), training.Snapshots(), *callbacks]
    trainer = training.Trainer(path, network, objective, source, coupling, solver, settings, callbacks)
    return Job(config, split, trainer, engine)


@checked
def settings_of(config: RunConfig) -> Any:
    """The trainer's settings, with the run's seed."""
    from fmkit.training.settings import Settings

    if "seed" in config.trainer:
        raise ConfigError("the seed is a key of its own: seed, not trainer.seed", "trainer.seed")
    try:
        return Settings(**config.trainer, seed=config.seed)
    except ArgumentError as error:
        place, _, said = str(error).partition(": ")
        raise ConfigError(said, f"trainer.{place}") from None


@checked
def dump(config: RunConfig) -> str:
    """The configuration as YAML, every key written out."""
    values = config.model_dump()
    values["trainer"] = settings_of(config).model_dump(mode="json", exclude={"seed"})
    text = io.StringIO()
    yaml = _yaml("safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(json.loads(json.dumps(values)), text)
    return text.getvalue()


def _seeded(seed: int) -> Any:
    """Weights are initialised from the run's seed, and the caller's own random state is left alone."""
    import contextlib

    import torch

    from fmkit.randomness import stream_seed

    @contextlib.contextmanager
    def forked():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "weights"))
            yield

    return forked()


def parsed(text: str, where: str) -> Any:
    """A value as the command line writes it: YAML, as `{name: hutchinson, probes: 4}`.

    Raises:
        ConfigError: if it is none.
    """
    try:
        return _yaml("safe").load(text)
    except RecursionError:
        raise ConfigError("nested too deeply", where) from None
    except YAMLError as error:
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"got {text!r}, which is no YAML value: {problem}", where) from None


def _yaml(kind: str) -> YAML:
    yaml = YAML(typ=kind, pure=True)
    yaml.allow_duplicate_keys = False
    return yaml


def _is_name(word: str) -> bool:
    key = word.partition("=")[0]
    return key.endswith(".name") or "." not in key


def _nest(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: _nest(rest, value) if rest else value}
