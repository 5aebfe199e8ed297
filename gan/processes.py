"""The processes a run consists of: one, several on a machine, or many on a cluster, through Lightning Fabric.

All of them hold the same networks and draw the same random numbers; each computes its share of a batch, and their
gradients are summed. So a run gives the same result, up to rounding, in any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from gan.config import TrainingConfig
from gan.networks import device_of


class Processes:
    """This process among the others of its run. rank: its number, from 0. count: how many there are."""

    def __init__(self, config: TrainingConfig):
        """Starts the others where `torchrun` or a cluster has not (config.devices, config.nodes).

        Raises ValueError when a GPU is wanted and none is visible, or more than there are.
        """
        from lightning_fabric import Fabric

        kind = device_of(config.device).type
        devices, nodes = config.devices, config.nodes
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has decided
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = int(os.environ["WORLD_SIZE"]) // devices
        if kind == "cuda" and devices > torch.cuda.device_count():
            raise ValueError(f"training.devices is {devices}, and this machine has {torch.cuda.device_count()} GPUs")
        strategy = "ddp" if devices * nodes > 1 else "auto"
        self._fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, precision=config.precision, strategy=strategy)
        self._fabric.launch()
        self.rank, self.count, self.device = self._fabric.global_rank, self._fabric.world_size, self._fabric.device
        self.dtype = torch.float64 if config.precision == "64" else torch.float32

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        """Products in lower precision, where config.precision asks for it."""
        return self._fabric.autocast()

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the processes: one message for all of them.

        Raises ConnectionError when another process has ended.
        """
        if self.count == 1:
            return list(tensors)
        together = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            torch.distributed.all_reduce(together)
        except RuntimeError as error:
            raise _lost(error) from None
        parts = together.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def agree(self, *numbers: float) -> bool:
        """Whether all processes come with the same numbers; all of them are told the same."""
        if self.count == 1:
            return True
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        (of_first,) = self.sum([mine if self.first else torch.zeros_like(mine)])
        (differing,) = self.sum([(mine != of_first).any().double()])
        return not differing.item()

    def differentiable_sum(self) -> Callable[[Tensor], Tensor] | None:
        """A tensor summed over the processes, as a function autograd knows; None where there is but one."""
        return None if self.count == 1 else lambda tensor: _Sum.apply(tensor, self)

    def close(self) -> None:
        """Leaves the group of processes."""
        if self.count > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over processes; each one's gradient is the sum of what all of them do with it."""

    @staticmethod
    def forward(ctx, tensor: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum([tensor])[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.sum([gradient])[0], None


def _lost(error: RuntimeError) -> ConnectionError:
    return ConnectionError(f"another process of this run has ended ({' '.join(str(error).split())[:160]}); see its message")


def shares(patients: np.ndarray, count: int) -> np.ndarray:
    """int (N,): which of `count` processes holds each patch. A patient's patches stay together; processes get about as many.

    The largest patient goes first, to whoever holds least. Raises ValueError when there are fewer patients than processes.
    """
    names, codes, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    if len(names) < count:
        raise ValueError(f"{count} processes want a training patient each, and there are {len(names)}; use fewer processes")
    held, owner = np.zeros(count, int), np.zeros(len(names), int)
    for patient in np.argsort(-sizes, kind="stable"):
        owner[patient] = np.argmin(held)
        held[owner[patient]] += sizes[patient]
    return owner[codes]
