"""Parts as plain data, and back: what a saved flow and a configuration have in common.

A part is written as its registered name, or as `{"name": ..., its arguments}`, nested where an argument is a part. The
constructor's annotations say what an argument may be, so neither a plugin author nor fmkit writes a schema. Tensors
are kept beside the data, under keys. A class or module that is not registered is written as `"@module:Class"`, and is
read only from the objects the caller hands over: nothing is ever imported because a file names it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from fmkit import registry
from fmkit.arguments import check_instance
from fmkit.errors import ConfigError, FmkitError, SavedFileError, did_you_mean
from fmkit.fields import VectorField
from fmkit.parts import Part, parameters_of

STRICT = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)


def describe(part: Part, tensors: dict[str, Tensor] | None = None, where: str = "") -> str | dict[str, Any]:
    """The part as plain data: its name, or its name and arguments.

    Args:
        part: the part.
        tensors: filled with tensor arguments by key; None refuses them.
        where: the dotted place, for messages and keys.

    Raises:
        SavedFileError: for an argument that is not data (a function, say).
    """
    check_instance("part", part, Part)
    name = registry.name_of(type(part)) or _label(type(part))
    arguments = {k: _describe(v, tensors, f"{where}.{k}".lstrip(".")) for k, v in part.arguments.items()}
    return {"name": name, **arguments} if arguments else name


def _describe(value: Any, tensors: dict[str, Tensor] | None, where: str) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case Part():
            return describe(value, tensors, where)
        case torch.nn.Module():
            return {"module": _label(type(value))}
        case Tensor() if tensors is not None:
            tensors[where] = value.detach().cpu().contiguous()
            return {"tensor": where}
        case Tensor():
            return value.tolist()
        case list() | tuple():
            return [_describe(v, tensors, f"{where}.{i}") for i, v in enumerate(value)]
        case Mapping():
            return {str(k): _describe(v, tensors, f"{where}.{k}") for k, v in value.items()}
    raise SavedFileError(f"{where} is a {type(value).__name__}, which cannot be saved; use numbers, text or parts")


@dataclass
class Context:
    """What building may draw on besides the data itself.

    Attributes:
        tensors: tensor arguments by key.
        using: classes and modules that the registry does not hold; a module is given out once.
        supplied: values for parameters of these names that the data leaves out (the event's shape, say).
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    using: Any = ()
    supplied: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.using = list(self.using)


def build(base: type[Part], spec: Any, where: str, context: Context | None = None) -> Any:
    """A part of the kind `base` from its name or `{"name": ..., arguments}`.

    Raises:
        ConfigError: naming the dotted key, what was got, and what would be right.
    """
    context = context or Context()
    if not (inspect.isclass(base) and issubclass(base, Part) and base.group):
        raise ConfigError(f"got {base!r}, expected a kind of part, as fmkit.Solver", where)
    if isinstance(spec, Part) and isinstance(spec, base):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ConfigError(f"got {spec!r}, expected a name or a mapping with a name", where)
    cls = _find(base, spec["name"], where, context)
    return build_class(cls, {k: v for k, v in spec.items() if k != "name"}, where, context)


def build_class(cls: type, arguments: Mapping[str, Any], where: str, context: Context) -> Any:
    """An instance of a known class from its arguments as plain data; errors as `build`."""
    parameters = parameters_of(cls)
    for key in arguments:
        if key not in parameters:
            hint = did_you_mean(str(key), parameters) or f"; {cls.__name__} takes no parameters"
            raise ConfigError(f"{cls.__name__} has no parameter {key!r}{hint}", f"{where}.{key}")
    values = {k: _value(v, parameters[k].annotation, f"{where}.{k}", context) for k, v in arguments.items()}
    for key, parameter in parameters.items():
        if key in values:
            continue
        if key in context.supplied and context.supplied[key] is not None:
            values[key] = context.supplied[key]
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"missing, and {cls.__name__} needs it", f"{where}.{key}")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except FmkitError as error:
        raise ConfigError(str(error), where) from error


def kinds_in(annotation: Any) -> list[type[Part]]:
    """The kinds of part that an annotation admits: `[Solver]` for `Solver | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for option in typing.get_args(annotation) for kind in kinds_in(option)]
    return [annotation] if inspect.isclass(annotation) and issubclass(annotation, Part) else []


def _value(value: Any, annotation: Any, where: str, context: Context) -> Any:
    if isinstance(value, Mapping) and set(value) == {"tensor"}:
        if not isinstance(value["tensor"], str) or value["tensor"] not in context.tensors:
            raise ConfigError(f"the tensor {value['tensor']!r} is missing", where)
        return context.tensors[value["tensor"]]
    if isinstance(value, Mapping) and set(value) == {"module"}:
        return _module(value["module"], where, context)
    kinds = kinds_in(annotation) or ([VectorField] if annotation is torch.nn.Module else [])
    if kinds and isinstance(value, str | Mapping):
        return build(kinds[0], value, where, context)
    if _admits(annotation, Tensor) and isinstance(value, list):
        return _tensor(value, where)
    element_kinds = [kind for argument in typing.get_args(annotation) for kind in kinds_in(argument)]
    if isinstance(value, list) and element_kinds:
        return [_value(v, element_kinds[0], f"{where}.{i}", context) for i, v in enumerate(value)]
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    try:
        return pydantic.TypeAdapter(_lax_collections(annotation), config=STRICT).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f".{p}" for p in first["loc"] if isinstance(p, int))
        said = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise ConfigError(f"got {first['input']!r}, expected {said}", where + inner) from None


def _lax_collections(annotation: Any) -> Any:
    """The annotation with tuples and sequences that accept a list, as YAML and JSON write them."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_lax_collections(a) for a in args if not _callable(a))]  # noqa: UP007
    if origin is tuple:
        return typing.Annotated[annotation, pydantic.Strict(False)]
    return annotation


def _callable(annotation: Any) -> bool:
    return typing.get_origin(annotation) is not None and typing.get_origin(annotation).__name__ == "Callable"


def _admits(annotation: Any, cls: type) -> bool:
    return annotation is cls or cls in typing.get_args(annotation)


def _tensor(value: list, where: str) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"not an array of numbers ({error})", where) from None


def _find(base: type[Part], name: str, where: str, context: Context) -> type:
    if name.startswith("@"):
        for candidate in context.using:
            if inspect.isclass(candidate) and _label(candidate) == name:
                return candidate
        raise ConfigError(f"{name[1:]} is no registered part; hand its class over with using=[...]", where)
    try:
        cls = registry.load(base.group, name)
    except FmkitError as error:
        raise ConfigError(str(error), where) from error
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise ConfigError(f"{name!r} is registered as {cls!r}, which is no {base.__name__}", where)
    return cls


def _module(label: Any, where: str, context: Context) -> torch.nn.Module:
    for i, candidate in enumerate(context.using):
        if isinstance(candidate, torch.nn.Module) and _label(type(candidate)) == label:
            return context.using.pop(i)  # two networks of one class are two
    raise ConfigError(
        f"the file holds the weights of {str(label).removeprefix('@')}, not its code; pass one with using=[module]",
        where,
    )


def _label(cls: type) -> str:
    return f"@{cls.__module__}:{cls.__qualname__}"
