"""The one place where times `(B,)` meet data `(B, *event)`, and where inputs are checked.

Times and the coefficients made from them are float64 (1 - 1e-5 rounds to 1 in bfloat16, and sqrt(1 - a²) loses
half its digits in float32); data keeps its own dtype, at least float32 wherever a solver accumulates. A coefficient
meets the data's dtype once, when it multiplies the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError

MOST = 2**60 - 1  # numbers of a tensor: torch counts their bytes in 64 bits


def time_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it (Apple's GPUs do not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(scale: Tensor, x: Tensor) -> Tensor:
    """A `(B,)` or 0-d coefficient, shaped to multiply `x` of shape `(B, *event)`, in the dtype of `x`."""
    scale = scale.to(x.dtype)
    return scale if scale.ndim == 0 else scale.reshape(-1, *[1] * (x.ndim - 1))


def widened(scales: Sequence[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """`widen` of several `(B,)` coefficients, which are converted together."""
    together = torch.cat(tuple(scales)).to(x.dtype)
    return together.view(len(scales), -1, *[1] * (x.ndim - 1)).unbind()


def readable(x: Tensor) -> bool:
    """Whether values can be looked at for nothing: on a GPU that would wait for it, inside a transform there are none.

    A tensor on the meta device never has any, and a compiled function has them only when it runs.
    """
    if torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def batch_time(t: Tensor | Real, x: Tensor) -> Tensor:
    """One time for each row of `x`: a number, a 0-d or a `(B,)` tensor becomes `(B,)`, in float64.

    Raises:
        ArgumentError: if `t` is neither, or has another shape (silent broadcasting of times is the commonest bug of the
            field).
    """
    dtype = time_dtype(x.device)
    if isinstance(t, Tensor) and t.dtype == dtype and t.shape == x.shape[:1] and t.device == x.device:
        return t  # as it is nearly always, at every evaluation
    if not isinstance(t, Tensor):
        if isinstance(t, bool) or not isinstance(t, Real):
            raise ArgumentError(f"t is {shown(t)}, expected a number, or a tensor of one time for each row of x")
        return torch.full((x.shape[0],), float(t), dtype=dtype, device=x.device)
    if not t.is_floating_point():
        raise ArgumentError(f"t has dtype {t.dtype}, expected floating point times")
    if t.device != x.device and t.device.type == "meta":
        raise ArgumentError("t is on the meta device, expected times that have values")
    if t.ndim == 0:
        return t.to(device=x.device, dtype=dtype).expand(x.shape[0]).contiguous()
    if t.shape != x.shape[:1]:
        raise ArgumentError(f"t has shape {tuple(t.shape)}, expected ({x.shape[0]},): one time for each row of x")
    return t.to(device=x.device, dtype=dtype)


def check_data(x: Tensor, name: str = "x") -> Tensor:
    """`x` itself, if it is a non-empty floating-point tensor `(B, *event)`; otherwise an ArgumentError."""
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{name} is a {type(x).__name__}, expected a torch tensor of shape (B, *event)")
    if not x.is_floating_point():
        raise ArgumentError(f"{name} has dtype {x.dtype}, expected floating point; convert it with {name}.float()")
    if x.ndim < 1 or x.numel() == 0:
        raise ArgumentError(f"{name} has shape {tuple(x.shape)}, expected a non-empty (B, *event)")
    if x.device.type == "meta":
        raise ArgumentError(f"{name} is on the meta device, expected a tensor that has values")
    return x


def check_like(y: Tensor, x: Tensor, name: str, of: str = "x") -> Tensor:
    """`y` itself, if it is a tensor of the shape, dtype and device of `x`; otherwise an ArgumentError."""
    if not isinstance(y, Tensor):
        raise ArgumentError(f"{name} is a {type(y).__name__}, expected a torch tensor like {of}, {tuple(x.shape)}")
    for what in ("shape", "dtype", "device"):
        got, want = getattr(y, what), getattr(x, what)
        if got != want:
            got, want = (tuple(v) if what == "shape" else v for v in (got, want))
            raise ArgumentError(f"{name} has {what} {got}, expected that of {of}, {want}")
    return y


def check_answer(y: Any, x: Tensor, name: str) -> Tensor:
    """What a network or a field answered for x: `y` itself, if it is a floating-point tensor of the shape of x.

    Its precision may differ: autocast answers in 16 bits.

    Raises:
        ArgumentError: naming who answered, what, and what would be right; a loss would silently broadcast it.
    """
    if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
        of = f" of {y.dtype}" if isinstance(y, Tensor) and not y.is_floating_point() else ""
        raise ArgumentError(
            f"{name} returned {shown(y)}{of} for x of shape {tuple(x.shape)}, expected floating point of that shape"
        )
    return y


def check_finite(x: Tensor, name: str = "x") -> Tensor:
    """`x` itself, if every element is finite; otherwise an ArgumentError that counts and locates the others."""
    bad = torch.atleast_1d(~torch.isfinite(x))
    if bad.any():
        rows = bad.reshape(len(bad), -1).any(1).nonzero()
        raise ArgumentError(
            f"{name} has {int(bad.sum())} non-finite values, the first in row {int(rows[0])}; expected finite numbers"
        )
    return x


def check_batch(x: Tensor, name: str = "x") -> Tensor:
    """`check_data`, and finite where that can be seen for next to nothing: for what runs at every training step."""
    check_data(x, name)
    if readable(x) and not seems_finite(x):
        check_finite(x, name)
    return x


def seems_finite(x: Tensor) -> bool:
    """Whether the sum is finite, which it is only if all it sums is; an overflow of finite numbers is taken for more.

    One number to look at, for what runs at every training step.
    """
    return math.isfinite(x.detach().sum())


def check_time(t: Tensor | Real, x: Tensor, interval: tuple[float, float]) -> Tensor:
    """`batch_time`, and inside `interval`.

    The values are looked at on the CPU only: on a GPU that would wait for the device at every training step.
    """
    t = batch_time(t, x)
    inside = t.clamp(*interval)
    if readable(t) and not torch.equal(t, inside):  # NaN, too, equals nothing
        low, high = (float(v) for v in torch.aminmax(t))
        # A float32 time may round past the interval's float64 end; that much is forgiven, and clamped away.
        if not (low >= interval[0] - 1e-7 and high <= interval[1] + 1e-7):
            raise ArgumentError(f"t ranges over [{low:.6g}, {high:.6g}], expected inside {list(interval)}")
    return inside


def check_points(
    t: Tensor | Real, x0: Tensor, x1: Tensor, interval: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of a path: times inside its interval, and two batches of one shape and dtype.

    Raises:
        ArgumentError: naming the input, what was got and what would be right.
    """
    check_ends(x0, x1)
    check_batch(x0, "x0")
    check_batch(x1, "x1")
    return check_time(t, x1, interval), x0, x1


def check_ends(x0: Tensor, x1: Tensor) -> None:
    """`check_points` without the times and without a look at the values."""
    check_data(x0, "x0")
    check_data(x1, "x1")
    if x0.shape != x1.shape:
        raise ArgumentError(f"x0 has shape {tuple(x0.shape)} and x1 {tuple(x1.shape)}; a path needs equal shapes")
    if x0.device != x1.device:
        raise ArgumentError(f"x0 is on {x0.device} and x1 on {x1.device}; a path needs one device")
    if x0.dtype != x1.dtype:
        raise ArgumentError(f"x0 has dtype {x0.dtype} and x1 {x1.dtype}; a path needs one dtype")


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape (B, *event) of a draw, of whole numbers >= 1; otherwise an ArgumentError."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) == 0:
        raise ArgumentError(f"shape is {shown(shape)}, expected (B, *event)")
    lengths = tuple(check_count("a length of the shape", n) for n in shape)
    if math.prod(lengths) > MOST:
        raise ArgumentError(f"shape is {shown(lengths)}, more numbers than any tensor holds")
    return lengths


def numbers(name: str, value: Any) -> Tensor:
    """A tensor of float64, of its own; an ArgumentError for what is no array of finite numbers."""
    try:
        given = torch.as_tensor(value)
        if given.is_complex() or given.dtype == torch.bool or given.device.type == "meta":
            raise TypeError(f"it holds {given.dtype} on {given.device}")
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{name} is no array of numbers: {error}") from None
    check_finite(tensor.reshape(-1), name)
    return tensor


def sum_event(x: Tensor) -> Tensor:
    """The sum over everything but the batch: `(B, *event)` to `(B,)`."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def mean_event(x: Tensor) -> Tensor:
    """The mean over everything but the batch: `(B, *event)` to `(B,)`."""
    return x.mean(tuple(range(1, x.ndim))) if x.ndim > 1 else x
