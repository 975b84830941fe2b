"""How many threads a request's arithmetic takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

FEW_ROWS = 16


@contextlib.contextmanager
def threads_for(rows: int, most: int) -> Iterator[None]:
    """One thread for a few rows, `most` for many.

    A server answers several requests at once, and threads that wait for each other on busy cores take many times as
    long as one that does not wait.
    """
    torch.set_num_threads(1 if rows < FEW_ROWS else most)
    try:
        yield
    finally:
        torch.set_num_threads(most)
