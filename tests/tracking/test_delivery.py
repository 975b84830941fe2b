"""Delivery to a store that is slow, away or unwilling: telling never waits, and nothing is lost while there is room."""

import logging
import threading
import time

import pytest

from cleanscale.tracking import delivery
from cleanscale.tracking.delivery import Delivery, Message, RunHandle

RUN = RunHandle("run", "1")
LONG_S = 30


def metric(number: int, size_bytes: int = 200) -> Message:
    return Message(RUN, "metrics", {"number": number}, size_bytes)


class Store:
    """Takes messages unless it is told to be away, to hang or to refuse."""

    def __init__(self):
        self.took: list[int] = []
        self.attempts = 0
        self.here, self.moving = threading.Event(), threading.Event()
        self.refused: set[int] = set()
        self.at_fault: set[int] = set()
        self.tried = threading.Semaphore(0)
        self.here.set()
        self.moving.set()

    def send(self, message: Message) -> None:
        self.attempts += 1
        self.tried.release()
        self.moving.wait()
        number = message.content["number"]
        if not self.here.is_set():
            raise ConnectionError("gone away\nand more lines")
        if number in self.refused:
            raise ValueError("no such thing")
        if number in self.at_fault:
            raise RuntimeError("something broke over there")
        self.took.append(number)

    def refuses(self, error: Exception) -> bool:
        return isinstance(error, ValueError)

    def answers(self) -> bool:
        return self.here.is_set()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def sent(store, monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(delivery, "CLOSING_WAIT_S", 0.002)
    made = Delivery(store, "http://server", most_bytes=2000)
    yield made
    store.moving.set()
    made.close(0)


def test_messages_arrive_in_their_order(store, sent):
    for number in range(10):
        sent.put(metric(number))
    assert sent.close(LONG_S) == []
    assert store.took == list(range(10))


def test_telling_does_not_wait_for_a_store_that_hangs(store, sent):
    store.moving.clear()
    sent.put(metric(0))
    assert store.tried.acquire(timeout=LONG_S)  # the thread is inside the call that does not return
    for number in range(1, 6):
        sent.put(metric(number))  # would never return if it waited for the store: only this thread can free it
    assert store.took == []
    store.moving.set()
    assert sent.flush(LONG_S)
    assert store.took == list(range(6))


def test_what_is_told_while_the_store_is_away_arrives_when_it_is_back(store, sent, caplog):
    with caplog.at_level(logging.INFO, "cleanscale"):
        sent.put(metric(0))
        assert sent.flush(LONG_S)
        store.here.clear()
        for number in range(1, 4):
            sent.put(metric(number))
        # Any number of attempts: more than a message that is itself at fault would get.
        for _ in range(delivery.MOST_ATTEMPTS + 3):
            assert store.tried.acquire(timeout=LONG_S)
        store.here.set()
        assert sent.flush(LONG_S)
        sent.put(metric(4))
        assert sent.close(LONG_S) == []
    assert store.took == [0, 1, 2, 3, 4]
    assert caplog.text.count("does not answer (gone away)") == 1
    assert "answers again" in caplog.text
    assert "and more lines" not in caplog.text


def test_what_is_refused_is_warned_of_once_and_holds_nothing_up(store, sent, caplog):
    store.refused = {1, 2}
    with caplog.at_level(logging.WARNING, "cleanscale"):
        for number in range(4):
            sent.put(metric(number))
        assert sent.close(LONG_S) == []
    assert store.took == [0, 3]
    assert store.attempts == 4
    assert caplog.text.count("did not take the metrics (no such thing)") == 1


def test_a_message_that_breaks_a_store_which_is_there_is_given_up_after_some_attempts(store, sent, caplog):
    store.at_fault = {0}
    sent.put(metric(0))
    sent.put(metric(1))
    assert sent.flush(LONG_S)
    assert store.took == [1]
    assert store.attempts == delivery.MOST_ATTEMPTS + 1
    assert "something broke over there" in caplog.text


def test_a_long_outage_takes_no_more_memory_than_there_is_room_for(store, sent):
    store.moving.clear()
    sent.put(metric(0))
    assert store.tried.acquire(timeout=LONG_S)
    sent.put(Message(RUN, "status", {"number": 1}))
    for number in range(2, 30):
        sent.put(metric(number))
    assert sent.waiting_bytes <= 2000
    waiting = list(sent.waiting)
    sent.put(metric(99, size_bytes=5000))  # would not fit in any case: nothing makes room for it
    assert list(sent.waiting) == waiting
    store.moving.set()
    assert sent.close(LONG_S) == []
    # The newest metrics, and what there is only one of.
    assert store.took[:2] == [0, 1]
    assert store.took[2:] == list(range(30 - len(store.took[2:]), 30))
    assert sent.dropped == 31 - len(store.took)


def test_the_end_of_a_run_waits_for_so_long_and_says_what_did_not_arrive(store, sent):
    store.here.clear()
    sent.put(metric(0))
    sent.put(metric(1))
    left = sent.close(0.05)
    assert [message.content["number"] for message in left] == [0, 1]


def test_the_end_of_a_run_does_not_wait_for_a_store_that_hangs(store, sent):
    store.moving.clear()
    sent.put(metric(0))
    assert store.tried.acquire(timeout=LONG_S)
    sent.put(metric(1))
    assert [message.content["number"] for message in sent.close(0.05)] == [0, 1]


def test_the_end_of_a_run_waits_on_for_a_store_that_is_only_slow(store, sent, monkeypatch):
    slow = store.send

    def send(message: Message) -> None:
        time.sleep(0.05)
        slow(message)

    monkeypatch.setattr(store, "send", send)
    for number in range(10):
        sent.put(metric(number))
    assert sent.close(0.2, while_it_moves=True) == []
    assert store.took == list(range(10))


def test_a_store_that_comes_back_while_the_run_ends_gets_everything(store, sent, monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 3600)
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 3600)
    store.here.clear()
    sent.put(metric(0))
    assert store.tried.acquire(timeout=LONG_S)
    store.here.set()
    assert sent.close(LONG_S) == []  # it does not sit out the pause between attempts
    assert store.took == [0]
