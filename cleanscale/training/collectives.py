"""What training loops need of the other workers. Loops receive one of these and never ask who is running."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch


class Collectives(Protocol):
    rank: int
    world: int

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Mean of `.grad` over workers, in place; a missing gradient counts as zero."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over workers; the same result on every worker."""
        ...

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over workers; the same result on every worker."""
        ...

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The workers' tensors, of equal shapes, behind each other in the order of ranks; no gradient flows back."""
        ...

    def wait(self) -> None:
        """For every worker to come here."""
        ...


class Alone:
    """One worker: nothing to exchange."""

    rank = 0
    world = 1

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        pass

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    def wait(self) -> None:
        pass


class TorchDistributed:
    """An initialised torch.distributed process group (Ray Train sets one up): gloo on CPU, NCCL on GPU."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.world = torch.distributed.get_world_size()
        self.device = device_of(torch.distributed.get_backend())

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        trained = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in trained])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = grad.view_as(p).to(p.dtype)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._reduced(tensor, torch.distributed.ReduceOp.SUM)

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._reduced(tensor, torch.distributed.ReduceOp.MAX)

    def _reduced(self, tensor: torch.Tensor, how: Any) -> torch.Tensor:
        found = tensor.to(self.device or tensor.device, copy=True)
        torch.distributed.all_reduce(found, op=how)
        return found.to(tensor.device)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        given = tensor.detach().to(self.device or tensor.device).contiguous()
        found = [torch.empty_like(given) for _ in range(self.world)]
        torch.distributed.all_gather(found, given)
        return torch.cat(found).to(tensor.device)

    def wait(self) -> None:
        torch.distributed.barrier()


def device_of(backend: str) -> torch.device | None:
    """Where tensors must lie for a backend; None: where they are. NCCL takes none of the CPU's."""
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else None


def collectives() -> Collectives:
    """The process group when there is one with several workers, otherwise `Alone`."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return TorchDistributed() if ready and torch.distributed.get_world_size() > 1 else Alone()
