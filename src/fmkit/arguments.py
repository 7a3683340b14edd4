"""What an argument must be: one check for each sort, and one of whole signatures by their annotations.

A check gives back what it was given, or raises an `ArgumentError`: what was got, where, what would be right. NaN is no
number here, True no whole number, and text no sequence.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from fmkit.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")
DEVICES = ("cpu", "cuda")  # that the command line knows, beside "auto"


def is_number(value: Any) -> bool:
    """Whether this is a real number: not True, not NaN, not text."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and not math.isnan(value)


def check_number(name: str, value: Any) -> float:
    """A finite number."""
    if type(value) is float and math.isfinite(value):
        return value
    if not is_number(value) or math.isinf(value):
        raise ArgumentError(f"{name} is {shown(value)}, expected a finite number")
    return float(value)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if type(value) is int and value >= least:  # told at once: asking an abstract class takes ten times as long
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < least:
        raise ArgumentError(f"{name} is {shown(value)}, expected a whole number of at least {least}")
    return int(value)


def check_instance(name: str, value: Any, kind: type) -> Any:
    """An object of the class `kind`."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{name} is {shown(value)}, expected {_article(kind.__name__)}")
    return value


def check_generator(generator: Any) -> torch.Generator | None:
    """A torch generator, or None for the global one."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentError(f"generator is {shown(generator)}, expected a torch.Generator (or None)")
    return generator


def check_dtype(dtype: Any) -> torch.dtype | None:
    """A floating-point dtype, or None for the default one."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype is {dtype!r}, expected a floating-point torch.dtype")
    return dtype


def check_device(device: Any) -> Any:
    """A torch device or its name, or None for the default one."""
    try:
        if device is not None and not isinstance(device, torch.device):
            torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(f"device is {shown(device)}, expected one of torch's, as 'cpu' or 'cuda:1'") from None
    return device


def device_of(name: str) -> str:
    """The device that a name on the command line means: "auto" is the GPU where there is one.

    Raises:
        ArgumentError: for no such name, or a GPU where there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise ArgumentError(f"device is {shown(name)}, expected auto, {' or '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device is 'cuda', and torch finds no GPU here; expected auto or cpu")
    return name


def shown(value: Any) -> str:
    """A value in a message: itself if it is short, else its type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if isinstance(value, torch.nn.Module):
        return _article(type(value).__name__)
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else _article(type(value).__name__)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, its arguments first held against its annotations; not for what runs at every step."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python says better itself what is missing or too much
        check_arguments(function, bound.arguments)
        return function(*args, **kwargs)

    return call


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Hold arguments by name against the annotations of a function; what is not annotated is not looked at."""
    known = annotations_of(function)
    for name, value in given.items():
        annotation = known.get(name, Any)
        if not _fits(value, annotation):
            raise ArgumentError(f"{name} is {shown(value)}, expected {' or '.join(_words(annotation))}")


@functools.lru_cache(maxsize=1024)
def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters; one that cannot be evaluated (imported for type checkers) is Any."""
    namespace, found = getattr(function, "__globals__", {}), {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, namespace)  # the author's own words, as typing.get_type_hints would
            except (NameError, TypeError, SyntaxError, AttributeError):
                annotation = Any
        found[name] = annotation
    return found


def _fits(value: Any, annotation: Any) -> bool:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:  # which of them is for the part to say, in its own words
        return isinstance(value, tuple({type(option) for option in inner}))
    if origin is Callable:
        return callable(value)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation is float:
        return is_number(value)
    if annotation is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if annotation is bool:
        return isinstance(value, bool | np.bool_)
    if inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        return _is_sequence(value, origin) and _elements_fit(value, origin, inner)
    annotation = origin or annotation
    return not inspect.isclass(annotation) or annotation is inspect.Parameter.empty or _is_one(value, annotation)


def _is_sequence(value: Any, origin: type) -> bool:
    if isinstance(value, str | bytes | Mapping | Tensor):
        return False
    return isinstance(value, Sequence | np.ndarray) or (not issubclass(origin, Sequence) and isinstance(value, origin))


def _elements_fit(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, Sequence | np.ndarray) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return not isinstance(value, np.ndarray)
    if issubclass(origin, tuple) and Ellipsis not in inner:
        return len(value) == len(inner) and all(_fits(v, a) for v, a in zip(value, inner, strict=True))
    return not inner or inner[0] is Any or all(_fits(v, inner[0]) for v in value)


def _is_one(value: Any, cls: type) -> bool:
    """Of the class; of a part, of its kind: whether it is the right one of its kind is for the part to say."""
    kinds = [base for base in cls.__mro__ if base.__dict__.get("group")]
    return isinstance(value, (kinds[-1] if kinds else cls, getattr(cls, "admits", None) or ()))


def _words(annotation: Any) -> list[str]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return list(dict.fromkeys(word for option in inner for word in _words(option)))
    if origin is Literal:
        return [repr(option) for option in inner]
    if annotation in (None, types.NoneType):
        return ["None"]
    plain = {float: "a number", int: "a whole number", bool: "True or False", str: "text", Tensor: "a tensor"}
    if annotation in plain:
        return [plain[annotation]]
    if origin is Callable:
        return ["a function"]
    if inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        of = [word for option in inner[:1] for word in _words(option)]
        return ["a sequence" + (f", each {' or '.join(of)}" if of and inner[0] is not Any else "")]
    return [_article(getattr(origin or annotation, "__name__", str(annotation)))]


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
