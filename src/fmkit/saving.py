"""Flows in files: one safetensors file, its parts described in JSON in the header. Nothing is ever unpickled.

Tensors are `state.KEY`, the flow's state_dict, and `argument.PLACE`, tensors that were constructor arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fmkit import specs
from fmkit._version import __version__
from fmkit.arguments import shown
from fmkit.errors import ConfigError, SavedFileError

if TYPE_CHECKING:
    from fmkit.flow import Flow

FORMAT = 1
# What makes tensors of a size given by numbers, and so many of these are a part's own affair: tables, frequencies.
MAKERS = {
    torch.empty,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.eye,
    torch.arange,
    torch.linspace,
    torch.rand,
    torch.randn,
}
SLACK = 2**22


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to `path` atomically: a temporary file beside it, fsync, rename."""
    write_bytes(Path(path), as_bytes(tensors, header))


def as_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """What `write_tensors` writes."""
    kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return safetensors.torch.save(kept, {"fmkit": json.dumps(header)})


def reason(error: Exception) -> str:
    """Why a file could not be used, in a few words: the system's, or that its name is none."""
    return getattr(error, "strerror", None) or str(error)


def write_bytes(path: Path, data: bytes, ready: Callable[[], None] | None = None) -> None:
    """Write a file whole or not at all, also through a loss of power.

    Args:
        path: the file.
        data: its bytes.
        ready: called when they are on the disk under another name, before they get this one.

    Raises:
        SavedFileError: if it cannot be written; a file that was there before is untouched.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except (OSError, ValueError) as error:
        raise SavedFileError(f"cannot write {path}: {reason(error)}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        if ready is not None:
            ready()
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:  # an interruption too leaves nothing behind
        with contextlib.suppress(OSError):  # the folder may have gone
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SavedFileError(f"cannot write {path}: {reason(error)}") from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder outlast a loss of power; only POSIX systems open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def parse_json(text: str) -> Any:
    """JSON from a file that anyone may have made.

    Raises:
        ValueError: if it is none, or nested deeper than anything fmkit writes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON header of a file written by `write_tensors`.

    Raises:
        SavedFileError: if it is missing, damaged, or not fmkit's.
    """
    with _opened(path) as (file, header):
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 - not a mapping


def read_shapes(path: str | Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """As `read_tensors`, but the tensors' shapes only, which takes no memory to speak of."""
    with _opened(path) as (file, header):
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, header  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A file written by `write_tensors`, and its header."""
    path = Path(path)
    if not _is_file(path):
        raise SavedFileError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = parse_json((file.metadata() or {})["fmkit"])
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                got = header.get("format") if isinstance(header, dict) else header
                raise SavedFileError(f"{path} has format {shown(got)}; fmkit {__version__} reads format {FORMAT}")
            yield file, header
    except KeyError:
        raise SavedFileError(f"{path} is a safetensors file, and not one that fmkit wrote") from None
    except SavedFileError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SavedFileError(f"{path} is damaged or no safetensors file: {error}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # a name that no file system allows
        return False


def save_flow(flow: Flow, path: str | Path) -> None:
    """Write a flow to one file."""
    arguments: dict[str, Tensor] = {}
    spec = specs.describe(flow, arguments)
    described = {k: v for k, v in spec.items() if k != "name"} if isinstance(spec, dict) else {}
    tensors = {f"state.{k}": v for k, v in flow.state_dict().items()}
    tensors |= {f"argument.{k}": v for k, v in arguments.items()}
    header = {"format": FORMAT, "fmkit": __version__, "kind": "flow", "flow": described}
    write_tensors(path, tensors, header)


def load_flow(path: str | Path, using: Iterable[Any] = ()) -> Flow:
    """Read a flow that `save_flow` wrote."""
    from fmkit.flow import Flow

    tensors, header = read_tensors(path)
    if header.get("kind") != "flow":
        raise SavedFileError(f"{path} holds a {header.get('kind')}, expected a flow")
    arguments = _under("argument.", tensors)
    try:
        if not isinstance(header.get("flow"), dict):
            raise ConfigError("missing, or no mapping", "flow")
        with _Allowance(sum(v.numel() for v in tensors.values()), path):
            flow = specs.build_class(Flow, header["flow"], "flow", specs.Context(arguments, tuple(using)))
    except ConfigError as error:
        raise SavedFileError(f"{path}: {error}") from error
    state = _under("state.", tensors)
    dtypes = {v.dtype for v in state.values() if v.is_floating_point()}
    if len(dtypes) == 1:
        flow.to(dtypes.pop())
    for key, value in flow.state_dict().items():
        if key in state and state[key].is_floating_point() != value.is_floating_point():
            raise SavedFileError(f"{path} has {state[key].dtype} for {key}, expected {value.dtype}")
    try:
        flow.load_state_dict(state)
    except RuntimeError as error:
        raise SavedFileError(f"{path} does not fit its own description: {error}") from error
    return flow.eval()


class _Allowance(TorchFunctionMode):
    """While a flow is built that a file describes, refuses to make more numbers than one of the file's size could have.

    Args:
        held: numbers in the file.
        path: of the file, for the message.
    """

    def __init__(self, held: int, path: str | Path) -> None:
        super().__init__()
        self.held, self.path, self.left = held, path, 4 * held + SLACK

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MAKERS:
            asked = {k: v for k, v in (kwargs or {}).items() if k not in ("generator", "out")}
            self.left -= func(*args, **{**asked, "device": "meta"}).numel()
            if self.left < 0:
                raise SavedFileError(
                    f"{self.path} describes a flow of far more than the {self.held} numbers that it holds; it is "
                    "damaged, or made to take memory"
                )
        return func(*args, **(kwargs or {}))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
