"""Processes that are killed, signalled or run side by side: forked from a server that has torch and fmkit loaded.

An interpreter that begins anew imports for five seconds before it does anything, and some tests want twenty processes.
A forked one is a process of its own all the same. Only the seed of hashes is shared: what may depend on that is held
against an interpreter of its own in `tests/cli`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed.fsdp", "scipy.optimize", "scipy.spatial", "fmkit.training"])


def start(target: Callable[..., None], *arguments: Any, said: Path, **environment: str) -> BaseProcess:
    """A process that calls a function that can be imported, with these arguments and variables; on one thread.

    What it writes on standard error is added to the file `said`.
    """
    process = SERVER.Process(target=_run, args=(target, arguments, said, environment))
    process.start()
    return process


def _run(target: Callable[..., None], arguments: tuple, said: Path, environment: dict[str, str]) -> None:
    import torch

    with said.open("ab") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)
