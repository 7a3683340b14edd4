"""Several processes, on torch's own stack: torchrun or SLURM starts them, `torch.distributed` carries what they say.

A step's loss is a mean over its whole batch, each process works out its rows' part of it, and the gradients are added
up after `backward`, from the parameters themselves. torch's `DistributedDataParallel` adds them up in hooks that only
its own `forward` arms: what `torch.func` computes with the bare network goes past them unseen. Here there is no way
past.
"""

from __future__ import annotations

import atexit
import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fmkit.arguments import check_number
from fmkit.errors import ArgumentError, CombinationError, TrainingError
from fmkit.training.engine import Engine, Whole
from fmkit.training.settings import Settings

BUCKET = 2**23  # numbers that are added up at once
LOST = re.compile("gloo|NCCL|onnection|peer")  # what torch's transports say when a process does not answer


class Place(NamedTuple):
    """Which process this is."""

    rank: int
    ranks: int
    local_rank: int
    address: str
    port: int


def found(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun or SLURM's srun has given this process; None where it is alone, or started otherwise.

    Raises:
        ArgumentError: if the variables are no whole numbers, or some are missing.
    """
    if "WORLD_SIZE" in environment:
        rank, ranks = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        local = _number(environment, "LOCAL_RANK", "0")
        address, port = environment.get("MASTER_ADDR", "localhost"), _number(environment, "MASTER_PORT", "29500")
    elif "SLURM_STEP_NUM_TASKS" in environment:  # set by srun only; the job's own variables are there without it
        rank, ranks = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS")
        local = _number(environment, "SLURM_LOCALID", "0")
        address = environment.get("MASTER_ADDR") or first_node(environment.get("SLURM_STEP_NODELIST", "localhost"))
        port = _number(environment, "MASTER_PORT", str(20000 + _number(environment, "SLURM_JOB_ID", "0") % 20000))
    else:
        return None
    if not 0 <= rank < ranks:
        raise ArgumentError(f"the environment says rank {rank} of {ranks} processes, expected 0 .. {ranks - 1}")
    return Place(rank, ranks, local, address, port) if ranks > 1 else None


def first_node(nodes: str) -> str:
    """The first host of SLURM's list: of "gpu[03-05,9],login1" it is "gpu03"."""
    inside = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    return nodes if inside is None else "".join(part or "" for part in inside.groups())


def _number(environment: Mapping[str, str], key: str, default: str | None = None) -> int:
    text = environment.get(key, default)
    if text is None or not text.isdecimal():
        raise ArgumentError(f"the environment's {key} is {text!r}, expected a whole number (torchrun and srun set it)")
    return int(text)


class Processes(Engine):
    """What every engine on torch's process group has in common: gloo on processors, NCCL on GPUs.

    Args:
        timeout: seconds after which a process that does not answer ends the run.
    """

    def __init__(self, timeout: float = 600.0) -> None:
        super().__init__()
        if not check_number("timeout", timeout) > 0:
            raise ArgumentError(f"timeout is {timeout}, expected seconds > 0")
        self.timeout = timeout
        self._at: torch.device | None = None

    def begin(self) -> None:
        """Meet the other processes, once for all runs of this process.

        Raises:
            ArgumentError: if nothing says which process this is.
            TrainingError: if the others do not come.
        """
        if not dist.is_initialized():
            place = found(os.environ)
            if place is None:
                raise ArgumentError(
                    f"the engine {type(self).__name__} needs several processes: start the command with torchrun "
                    "--nproc-per-node 2 -m fmkit ..., or with srun"
                )
            try:
                self._open(place)
            except (RuntimeError, ValueError) as error:
                raise TrainingError(f"rank {place.rank} found no other process: {error}") from error
            atexit.register(_part)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    def _open(self, place: Place) -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        wait = timedelta(seconds=self.timeout)
        if "RANK" in os.environ:  # torchrun keeps a meeting place of its own, which only this way leads to
            dist.init_process_group(backend, timeout=wait)
        else:
            at = f"tcp://{place.address}:{place.port}"
            dist.init_process_group(backend, at, timeout=wait, rank=place.rank, world_size=place.ranks)

    def end(self, error: BaseException | None = None) -> None:
        """Say in plain words that another process has gone.

        Nothing else yet: processes that part and meet again at once may miss each other, so they part at their exit.

        Raises:
            TrainingError: if that is what the error means.
        """
        if isinstance(error, RuntimeError) and LOST.search(str(error)):
            raise TrainingError(
                f"rank {self.rank} lost another process, whose own message says why; the last checkpoint is untouched "
                f"({str(error).splitlines()[0]})"
            ) from error

    def device(self, asked: str | None) -> str:
        if asked not in (None, "cuda") or not torch.cuda.is_available():
            name = asked or "cpu"
        else:
            place = found(os.environ)
            local = self.rank % torch.cuda.device_count() if place is None else place.local_rank
            name = f"cuda:{local}"
            torch.cuda.set_device(local)
        self._at = torch.device(name)
        return name

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def count(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        alone = "cpu" not in dist.get_backend_config()  # somebody else's group, of GPUs only
        return super().count(numbers, device if alone else torch.device("cpu"))

    def tell(self, text: str) -> str:
        data = text.encode()
        size = torch.tensor([len(data)], device=self._at)
        dist.broadcast(size, 0)
        raw = torch.tensor(list(data) if self.main else [0] * int(size), dtype=torch.uint8, device=self._at)
        dist.broadcast(raw, 0)
        return bytes(raw.tolist()).decode()

    def copy(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            there = tensor.detach().to(self._at or tensor.device).contiguous()
            dist.broadcast(there, 0)
            tensor.copy_(there)


class DDP(Whole, Processes):
    """Every process holds the whole network and averages gradients with the others: data parallelism.

    Args:
        timeout: seconds after which a process that does not answer ends the run.
    """

    def spread(self, network: torch.nn.Module) -> torch.nn.Module:
        self.copy([p.data for p in network.parameters()] + list(network.buffers()))
        return network

    def add_gradients(self, parameters: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        for bucket in _buckets(parameters):
            lacking = [p.grad is None for p in bucket]
            pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            # Which gradients there are is added up too: a weight that one process did not use may move all the same.
            there = torch.tensor(lacking, device=bucket[0].device).logical_not().to(bucket[0].dtype)
            flat = torch.cat([*(g.reshape(-1) for g in pieces), there])
            dist.all_reduce(flat)
            *sums, there = flat.split([*(p.numel() for p in bucket), len(bucket)])
            somewhere = there.bool().tolist() if any(lacking) else [True] * len(bucket)
            for parameter, values, used in zip(bucket, sums, somewhere, strict=True):
                parameter.grad = values.view_as(parameter) if used else None


class FSDP(Processes):
    """Every process holds a part of each weight, gradient and average: torch's `fully_shard` (FSDP2).

    Blocks, the modules in the network's lists, are made whole one after the other while they compute.

    Args:
        timeout: seconds after which a process that does not answer ends the run.
    """

    def check(self, settings: Settings) -> None:
        if settings.precision == "float16":
            raise CombinationError("precision: FSDP cannot scale gradients as float16 needs it; take bfloat16")
        if settings.compile:
            raise CombinationError("compile: FSDP puts weights together while the network computes, outside any graph")

    def spread(self, network: torch.nn.Module) -> torch.nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        at = self._at or torch.device("cpu")
        mesh = init_device_mesh(at.type, (self.ranks,))
        spread = copy.deepcopy(network)
        self.copy([p.data for p in spread.parameters()] + list(spread.buffers()))
        for block in blocks_of(spread):
            fully_shard(block, mesh=mesh)
        fully_shard(spread, mesh=mesh)
        return spread

    def local(self, tensor: Any) -> Tensor:
        return tensor.detach().to_local() if _spread(tensor) else tensor

    def gather(self, tensor: Tensor, like: Any) -> Tensor:
        from torch.distributed.tensor import DTensor

        if not _spread(like) or tensor.ndim != like.ndim or like.ndim == 0:
            return tensor
        mesh, placements = like.device_mesh, like.placements
        whole = DTensor.from_local(
            tensor, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
        ).full_tensor()
        return whole.detach()

    def share(self, whole: Tensor, like: Any) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        if not _spread(like):
            return whole
        at = whole.to(like.device)
        return distribute_tensor(at, like.device_mesh, like.placements, src_data_rank=None).to_local()

    def add_gradients(self, parameters: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        for parameter, part in zip(parameters, parts, strict=True):
            # What fully_shard has averaged is wanted as a sum.
            part.grad = None if parameter.grad is None else self.local(parameter.grad) * self.ranks

    def add_parts(self, values: Tensor) -> Tensor:
        return self.sum(values)


def blocks_of(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The blocks that a network is a row of: the modules with weights in its innermost lists."""
    for child in network.children():
        inner = list(blocks_of(child))
        if inner or not isinstance(network, torch.nn.ModuleList):
            yield from inner
        elif any(True for _ in child.parameters()):
            yield child


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _spread(tensor: Any) -> bool:
    return hasattr(tensor, "to_local")


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in their order, in groups of one precision and at most `BUCKET` numbers, or one alone."""
    bucket: list[Tensor] = []
    numbers = 0
    for parameter in parameters:
        if bucket and (numbers + parameter.numel() > BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(parameter)
        numbers += parameter.numel()
    if bucket:
        yield bucket
