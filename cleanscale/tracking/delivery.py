"""Delivery to a tracking store that may be away: in order, in the background, kept and tried again until it is back.

Telling never waits: `put` adds to a queue of bounded size, and one thread sends from it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20  # some 400,000 metrics: days of them
FIRST_WAIT_S, LONGEST_WAIT_S, CLOSING_WAIT_S = 0.5, 30.0, 1.0
# A message that fails although the store answers is at fault itself, or the artifacts have a store that is away.
MOST_ATTEMPTS = 8


@dataclass
class RunHandle:
    """A run that messages are about. A nested run has no id until the store, which may be away, has made it."""

    name: str
    id: str | None = None
    started_ms: int = 0
    parent: RunHandle | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """kind: metrics, tags, parameters, dataset, artifact, begin, status or end_abandoned; content: its arguments."""

    run: RunHandle
    kind: str
    content: dict[str, Any]
    size_bytes: int = 200


class Store(Protocol):
    """What delivers one message."""

    def send(self, message: Message) -> None:
        """Raises whatever goes wrong."""
        ...

    def refuses(self, error: Exception) -> bool:
        """Whether sending the same again cannot help."""
        ...

    def answers(self) -> bool:
        """Whether the store is there at all."""
        ...


class Delivery:
    """One thread that sends what was put, in that order."""

    def __init__(self, store: Store, place: str, most_bytes: int = MOST_BYTES) -> None:
        self.store, self.place, self.most_bytes = store, place, most_bytes
        self.waiting: deque[Message] = deque()
        self.waiting_bytes = 0
        self.sending: Message | None = None
        self.away = False
        self.delivered, self.dropped = 0, 0
        self.warned: set[str] = set()
        self._changed = threading.Condition()
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="tracking delivery", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Take a message and return at once. When too much waits, the oldest metrics go; nothing else is that many."""
        with self._changed:
            while self.waiting_bytes + message.size_bytes > self.most_bytes:
                self.dropped += 1
                fits = message.size_bytes <= self.most_bytes
                oldest = next((m for m in self.waiting if m.kind == "metrics"), None) if fits else None
                if oldest is None:
                    return
                self.waiting.remove(oldest)
                self.waiting_bytes -= oldest.size_bytes
            self.waiting.append(message)
            self.waiting_bytes += message.size_bytes
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is delivered; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.waiting and self.sending is None, timeout_s)

    def close(self, patience_s: float, *, while_it_moves: bool = False) -> list[Message]:
        """Deliver what waits, for so long at most; returns what could not be delivered.

        while_it_moves: as long as something arrives within each such time, wait on: the store is only slow.
        """
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        before = self.delivered
        self._thread.join(patience_s)
        while while_it_moves and self._thread.is_alive() and self.delivered > before:
            before = self.delivered
            self._thread.join(patience_s)
        with self._changed:
            self._given_up.set()
            self._changed.notify_all()
            left = [*([self.sending] if self.sending else []), *self.waiting]
            self.waiting.clear()
        return left

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.waiting or self._closing.is_set())
                if not self.waiting:
                    return
                self.sending = self.waiting.popleft()
            delivered = self._send(self.sending)
            with self._changed:
                if self._given_up.is_set():
                    return
                self.waiting_bytes -= self.sending.size_bytes
                self.sending = None
                self.delivered += delivered
                self._changed.notify_all()
            if delivered and self.away:
                self.away = False
                log.info("MLflow at %s answers again; %d messages waited for it", self.place, len(self.waiting) + 1)

    def _send(self, message: Message) -> bool:
        """Try until it is delivered (True), refused, or nobody waits for it any more (False)."""
        attempts, wait_s = 0, FIRST_WAIT_S
        while not self._given_up.is_set():
            try:
                self.store.send(message)
                return True
            except Exception as error:  # whatever it is: the run is worth more than its log
                if self.store.refuses(error):
                    self._warn_refused(message, error)
                    return False
                if self.store.answers():
                    attempts += 1
                    if attempts == MOST_ATTEMPTS:
                        self._warn_refused(message, error)
                        return False
                else:
                    self._warn_away(error)
            if self._closing.is_set():  # the end of the run waits: no time for long pauses
                self._given_up.wait(CLOSING_WAIT_S)
            else:
                self._closing.wait(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        return False

    def _warn_refused(self, message: Message, error: Exception) -> None:
        if message.kind not in self.warned:
            log.warning("MLflow did not take the %s (%s); the run folder has them", message.kind, first_line(error))
        self.warned.add(message.kind)

    def _warn_away(self, error: Exception) -> None:
        if not self.away:
            log.warning(
                "MLflow at %s does not answer (%s); the run goes on, and what it logs is kept and sent later",
                self.place,
                first_line(error),
            )
        self.away = True


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
