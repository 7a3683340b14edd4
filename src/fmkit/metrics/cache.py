"""What is computed once from a data set and kept: trained feature extractors, reference statistics.

A file is named by a hash of all that it follows from: the data, the settings, the version of its form. Another data set
or another fmkit makes another file, so a stale one is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import shown
from fmkit.errors import ArgumentError, SavedFileError
from fmkit.saving import FORMAT, read_tensors, reason, write_tensors

VARIABLE = "FMKIT_CACHE"


def cache_folder(folder: str | Path | None = None) -> Path:
    """Where kept files are: `folder`, else what FMKIT_CACHE says, else `fmkit` in XDG_CACHE_HOME or ~/.cache.

    Raises:
        ArgumentError: if `folder` is no path.
    """
    if folder is None:
        folder = os.environ.get(VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fmkit"
    if not isinstance(folder, str | Path) or not str(folder):
        raise ArgumentError(f"cache is {shown(folder)}, expected a folder")
    return Path(folder).expanduser()


def fingerprint(*tensors: Tensor | None) -> str:
    """32 hexadecimal digits of tensors: their dtypes, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none;")
            continue
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Kept:
    """One file of the cache, named by what it follows from.

    Args:
        kind: a word for what it holds, which begins its name.
        key: all that it follows from, as JSON has it.
        cache: the folder; see `cache_folder`.
    """

    def __init__(self, kind: str, key: Mapping[str, Any], cache: str | Path | None = None) -> None:
        self.kind, self.key = kind, dict(key)
        name = hashlib.blake2b(json.dumps(self.key, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.path = cache_folder(cache) / f"{kind}-{name}.safetensors"

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and header; None where there is no file yet, or, with a warning, where it is damaged."""
        try:
            if not self.path.exists():
                return None
            tensors, header = read_tensors(self.path)
            if header.get("kind") != self.kind or header.get("key") != self.key:
                raise SavedFileError(f"{self.path} holds another {self.kind}")
        except (SavedFileError, OSError) as error:
            self.damaged(error)
            return None
        return tensors, header

    def damaged(self, error: object) -> None:
        """Warn that the file is of no use."""
        warnings.warn(f"{error}; the {self.kind} is made again", UserWarning, stacklevel=3)

    def write(self, tensors: Mapping[str, Tensor], **header: Any) -> None:
        """Write the file whole or not at all; where that cannot be, warn and go on without."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(self.path, tensors, {"format": FORMAT, "kind": self.kind, "key": self.key} | header)
        except (SavedFileError, OSError) as error:
            why = error if isinstance(error, SavedFileError) else f"cannot write {self.path}: {reason(error)}"
            warnings.warn(f"{why}; the {self.kind} is not kept for the next time", UserWarning, stacklevel=3)
