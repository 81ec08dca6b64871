"""Who trains: one process, or several that each take a part of every batch.

The gradient is that of the whole batch: each rank's loss is the mean over its own rows times
``rows * size / rows of the batch``, so that the average over ranks, which DistributedDataParallel
and FSDP2 take, is the mean over all rows, however many each rank has.
"""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from platform import node
from socket import if_nameindex
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from thalweg.alive import (
    again,
    claimed,
    ended_by_interrupts,
    is_on_one_machine,
    is_several,
    meeting,
    processes,
    watched,
)
from thalweg.errors import ArgumentError
from thalweg.optim.shards import is_sharded, with_part
from thalweg.optim.state import opened, scale_of
from thalweg.train.arguments import FitError

__all__ = ["ALONE", "Ranks", "blocks", "joined"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, as one of them sees it.

    What ranks tell each other all of them have to ask for, in the same order.

    Attributes:
        rank: its own number, from 0.
        size: how many there are.
        device: its own.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module, shard: bool = False) -> nn.Module:
        """The module as it is called to train on all ranks, with the first one's weights.

        Args:
            module: on the device.
            shard: whether each rank keeps only its part of weights, gradients and the optimizer's
                state (FSDP2, `blocks` by block); else each has all of them.

        Warns:
            UserWarning: if it has batch normalisation, whose batch each rank has to itself.
        """
        if self.size == 1:
            return module
        self._warn_of_statistics(module)
        if not shard:
            # Which parameters a step leaves out may change from step to step; what ranks keep
            # besides is made one by `share_buffers` when it is needed, not at every step.
            return DistributedDataParallel(
                module,
                forward_sync_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for t in (*module.parameters(), *module.buffers()):
            _broadcast(t)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    def _warn_of_statistics(self, module: nn.Module) -> None:
        names = [
            name
            for name, part in module.named_modules()
            if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
        ]
        if names and self.first:
            remedy = (
                "nn.SyncBatchNorm.convert_sync_batchnorm(model) in the task's file"
                if self.device.type == "cuda"
                else "nn.GroupNorm or nn.LayerNorm (nn.SyncBatchNorm works on CUDA only)"
            )
            warnings.warn(
                f"the model has batch normalisation ({names[0]}"
                f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}), and each of the "
                f"{self.size} ranks normalises by its own rows of a batch, so that the training "
                f"is not that of one process; take {remedy}, or larger batches",
                stacklevel=3,
            )

    def part(self, batch: tuple[Any, Any]) -> tuple[tuple[Any, Any], int]:
        """This rank's rows of a batch that all have, and how many of them count.

        A rank for which there is none gets the first one, which does not.
        """
        rows = len(tree_leaves(batch[1])[0])
        if self.size == 1:
            return batch, rows
        first, end = self._cut(rows, self.rank), self._cut(rows, self.rank + 1)
        kept = slice(first, end) if end > first else slice(0, 1)
        return tree_map(lambda t: t[kept], batch), end - first

    def _cut(self, rows: int, rank: int) -> int:
        """Where the rows of a rank begin."""
        return rows * rank // self.size

    def alike(self, batches: Iterator[T]) -> Iterator[T]:
        """Batches of a loader of one's own, of which each rank has to be given the same.

        Raises:
            FitError: if the targets of the first one are not the same on all.
        """
        if self.size == 1:
            yield from batches
            return
        for batch in batches:
            y = batch[1] if isinstance(batch, tuple | list) else batch
            known = b"".join(_bytes(t.cpu().contiguous()).numpy().tobytes() for t in tree_leaves(y))
            if len(set(self.all_of(sha256(known).hexdigest()))) > 1:
                raise FitError(
                    "loader",
                    f"gives each of the {self.size} ranks other batches, where each is to take its "
                    f"part of the same one; give it an order that all have: DataLoader(..., "
                    f"generator=torch.Generator().manual_seed(0)), and no DistributedSampler",
                )
            yield batch
            break
        yield from batches

    def sum(self, *values: Tensor) -> list[Tensor]:
        """Sums over the ranks, in float64."""
        if self.size == 1:
            return list(values)
        flat = torch.cat([v.detach().double().flatten() for v in values]).to(self.device)
        distributed.all_reduce(flat)
        parts = torch.split(flat, [v.numel() for v in values])
        return [part.view(v.shape) for part, v in zip(parts, values, strict=True)]

    def gather(self, outputs: T, rows: int) -> T:
        """Of a batch of so many rows the outputs of all ranks, in its order.

        Args:
            outputs: tensors ``(own rows, *)``, of what `part` gave.
            rows: of the whole batch.
        """
        if self.size == 1:
            return outputs
        counts = [self._cut(rows, r + 1) - self._cut(rows, r) for r in range(self.size)]

        def together(t: Tensor) -> Tensor:
            own = t.new_zeros((max(counts), *t.shape[1:]))
            own[: counts[self.rank]] = t.detach()[: counts[self.rank]]
            sent = _bytes(own)
            got = [torch.empty_like(sent) for _ in counts]
            distributed.all_gather(got, sent)
            parts = (g.view(t.dtype).view(own.shape)[:n] for g, n in zip(got, counts, strict=True))
            return torch.cat(list(parts))

        found: T = tree_map(together, outputs)
        return found

    def most(self, value: float) -> float:
        """The largest of what all ranks say; to be had when the last has said it."""
        if self.size == 1:
            return value
        found = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return found.item()

    def all_of(self, value: T) -> list[T]:
        """What each rank says, in their order; plain values and tensors on the CPU."""
        found = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, value)
        return found

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """For backward passes whose gradients are not those of the step yet."""
        if isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return nullcontext() if self.size == 1 else _unsent(module)

    @torch.no_grad()
    def share_buffers(self, module: nn.Module) -> None:
        """Give all ranks the same buffers.

        Those of batch normalisation become the means over the ranks, each of which has seen other
        rows; all others those of the first rank.
        """
        if self.size == 1:
            return
        means = {
            id(t)
            for part in module.modules()
            if isinstance(part, _BatchNorm)
            for t in (part.running_mean, part.running_var)
        }
        for t in module.buffers():
            if id(t) in means:
                distributed.all_reduce(t)
                t /= self.size
            else:
                _broadcast(t)

    def model_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Copies of all weights on the CPU, under the model's own names, the same on all ranks."""
        self.share_buffers(module)
        found: dict[str, Tensor] = _whole(_inside(module).state_dict())
        return found

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """A copy on the CPU of the optimizer's state, the same on all ranks.

        It is as one process has it, and may go on with any number of them: where parameters are
        cut up, what is kept of them in eight bits, by scales of each rank's own, is opened.
        """
        state = optimizer.state_dict()
        for i, p in _numbered(optimizer, state).items():
            kept = state["state"].get(i)
            if kept and is_sharded(p):
                state["state"][i] = {
                    name: with_part(p, t) if kept[name] is not t else t
                    for name, t in _opened(kept).items()
                }
        # In one order: ranks send each other their parts.
        state["state"] = dict(sorted(state["state"].items()))
        found: dict[str, Any] = _whole(state)
        return found

    def load_model(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take such weights."""
        inside = _inside(module)
        own = inside.state_dict()
        inside.load_state_dict({name: _laid_out(own.get(name), t) for name, t in state.items()})

    def load_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take such a state, from any number of ranks; it may become the optimizer's own."""
        optimizer.load_state_dict(_cut_up(optimizer, state))


ALONE = Ranks(0, 1, torch.device("cpu"))


def blocks(module: nn.Module) -> list[nn.Module]:
    """What FSDP2 gathers together: the elements of the outermost lists of layers.

    Those are the layers of an ``nn.Sequential``, or a transformer's blocks in an
    ``nn.ModuleList``. While one computes, the next is gathered, and only one or two are whole at
    any time. All else, and what shares a parameter with it, is gathered with the whole model: its
    ``forward`` may be one that is never called, where weights are used directly.
    """
    found: list[nn.Module] = []

    def search(part: nn.Module) -> None:
        for child in part.children():
            if isinstance(part, nn.Sequential | nn.ModuleList):
                found.append(child)
            else:
                search(child)

    search(module)
    uses: dict[int, int] = {}
    for _, p in module.named_parameters(remove_duplicate=False):
        uses[id(p)] = uses.get(id(p), 0) + 1

    def stands_alone(block: nn.Module) -> bool:
        own = [id(p) for _, p in block.named_parameters(remove_duplicate=False)]
        return bool(own) and all(own.count(i) == uses[i] for i in own)

    return [block for block in dict.fromkeys(found) if stands_alone(block)]


@contextmanager
def _unsent(module: Any) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def _inside(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _bytes(t: Tensor) -> Tensor:
    """What a contiguous tensor consists of: gloo does not know all dtypes."""
    return t.detach().reshape(-1).view(torch.uint8)


@torch.no_grad()
def _broadcast(t: Tensor) -> None:
    """Give a tensor the values that it has on the first rank."""
    sent = _bytes(t.detach().contiguous())
    distributed.broadcast(sent, 0)
    t.copy_(sent.view(t.dtype).view(t.shape))


def _whole(state: Any) -> Any:
    def copied(t: Any) -> Any:
        if isinstance(t, np.generic):  # which is not read again as a plain value is
            return t.item()
        if not isinstance(t, Tensor):
            return copy.copy(t)
        return (t.full_tensor() if is_sharded(t) else t).detach().to("cpu", copy=True)

    return tree_map(copied, dict(state))


def _numbered(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[int, Tensor]:
    """Parameters by the numbers by which a state knows them."""
    groups = zip(optimizer.param_groups, state["param_groups"], strict=False)
    return {
        i: p
        for group, saved in groups
        for i, p in zip(saved["params"], group["params"], strict=False)
    }


def _laid_out(like: Any, t: Any) -> Any:
    """A whole tensor cut up as another of its shape; one of another shape, each rank has all of."""
    if not (isinstance(t, Tensor) and t.ndim and isinstance(like, Tensor) and is_sharded(like)):
        return t
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = like.device_mesh
    placements = like.placements if t.shape == like.shape else [Replicate()] * mesh.ndim
    # Each rank has all of it, and takes its part from there.
    return distribute_tensor(t.to(like.device), mesh, placements, src_data_rank=None)


def _opened(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a parameter, moments in eight bits opened."""
    scales = {scale_of(name) for name in state} & state.keys()
    return {
        name: opened(t, state[scale_of(name)]) if scale_of(name) in scales else t
        for name, t in state.items()
        if name not in scales
    }


def _cut_up(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A whole state laid out as the optimizer's parameters are."""
    parameters = _numbered(optimizer, state)

    def laid_out(by_number: Mapping[int, Any]) -> dict[int, Any]:
        return {i: _laid_out(parameters.get(i), t) for i, t in by_number.items()}

    found = {**state, "state": dict(state["state"])}
    for i, kept in state["state"].items():
        p = parameters.get(i)
        if p is not None and is_sharded(p):
            found["state"][i] = {name: _laid_out(p, t) for name, t in _opened(kept).items()}
    if "wrappers" in state:
        found["wrappers"] = [
            {n: laid_out(kept) if isinstance(kept, dict) else kept for n, kept in one.items()}
            for one in state["wrappers"]
        ]
    return found


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes, if torchrun has started some; else train alone.

    They talk by gloo, and of CUDA tensors by NCCL; where all are on this machine, by its loopback.
    A process group that there is already is used as it is. As soon as one rank ends in the midst
    of it so do the others, and one sentence says which it was.

    Args:
        device: as torch names it, ``cpu`` or ``cuda``, of which each rank takes its own.

    Raises:
        FitError: for a device that not every rank can have, and for variables of torchrun's that
            are incomplete.
    """
    if distributed.is_initialized():
        yield _ranks(device)
        return
    if not is_several():
        yield Ranks(0, 1, torch.device(device))
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise FitError(
                "ranks",
                f"RANK={os.environ['RANK']} says that several processes train together, and "
                f"{name} is not set; start them by torchrun --nproc-per-node 2 -m thalweg fit "
                f"TASK, or unset RANK",
            )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if is_on_one_machine():
        # Else the host's name is looked up, which in a container may lead nowhere.
        loopback = next((name for _, name in if_nameindex() if name.startswith("lo")), None)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if loopback else ():
            os.environ.setdefault(name, str(loopback))
    own = _own_device(device)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    with ended_by_interrupts():
        distributed.init_process_group(backend, store=meeting(), rank=rank, world_size=size)
        ranks = _ranks(device)
        places = ranks.all_of((node(), os.getpid()))
    others = {r: pid for r, (where, pid) in enumerate(places) if where == node() and r != rank}
    sound = False
    try:
        with watched(processes(others, size)):
            yield ranks
            ranks.most(0.0)  # watched, until all are here
        ranks.most(0.0)  # and until none is watched any longer: then they may end
        sound = True
    except BaseException as error:
        sound = isinstance(error, ArgumentError | KeyboardInterrupt)  # on which all agree
        if claimed() and isinstance(error, Exception) and not sound:
            error.add_note(f"rank {rank} of {size} failed, and so end the others; {again()}")
        raise
    finally:
        if sound:  # else it may wait for what never comes
            distributed.destroy_process_group()


def _ranks(device: str) -> Ranks:
    return Ranks(distributed.get_rank(), distributed.get_world_size(), _own_device(device))


def _own_device(device: str) -> torch.device:
    if torch.device(device).type != "cuda":
        return torch.device(device)
    index = int(os.environ.get("LOCAL_RANK", distributed.get_rank()))
    count = torch.cuda.device_count()
    if index >= count:
        raise FitError(
            "device",
            f"each rank takes a GPU of its own, and torch finds {count} here; "
            + (f"start no more by --nproc-per-node {count}" if count else "take cpu"),
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
