"""Workers that are threads, for tests of training loops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class Threads:
    """Collectives of workers that are threads."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, board: list) -> None:
        self.rank, self.world, self.barrier, self.board = rank, world, barrier, board

    def everybodys(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.board[self.rank] = tensor.detach().clone()
        self.barrier.wait()
        found = list(self.board)
        self.barrier.wait()
        return found

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.everybodys(tensor)).sum(0)

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.everybodys(tensor)).amax(0)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.everybodys(tensor))

    def wait(self) -> None:
        self.barrier.wait()

    def average_gradients(self, parameters) -> None:
        for p in parameters:
            grad = p.grad if p.grad is not None else torch.zeros_like(p)
            p.grad = self.sum(grad) / self.world


def on_threads(work: Callable[[Threads], Any], world: int) -> list[Any]:
    """What `work(collectives)` gives on each worker. An exception of one is raised here."""
    barrier, board, found, errors = threading.Barrier(world), [None] * world, [None] * world, []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, world, barrier, board))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return found
