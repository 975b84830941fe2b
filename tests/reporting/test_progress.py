"""Progress off and on a terminal, by a clock that the tests turn."""

import io
import logging
import threading

import pytest
from rich.console import Console

from cleanscale.reporting.progress import Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "cleanscale.progress")
    return caplog


def plain(clock):
    return Progress(Console(file=io.StringIO()), clock=clock)


def test_lines_come_every_ten_seconds_with_rate_and_time_left(clock, lines):
    with plain(clock).step("features", total=50_000, unit="images") as step:
        for _ in range(32):
            clock.now += 1
            step.advance(400)
    assert lines.messages == [
        "features: 50,000 images",
        "features 4,000/50,000 images, 400 images/s, 1 min 55 s left",
        "features 8,000/50,000 images, 400 images/s, 1 min 45 s left",
        "features 12,000/50,000 images, 400 images/s, 1 min 35 s left",
        "features: 12,800 images in 32 s, 400 images/s",
    ]


def test_the_rate_is_of_late_so_that_a_slow_start_is_forgotten(clock):
    with plain(clock).step("features", total=10_000) as step:
        clock.now += 100
        step.advance(10)
        for _ in range(60):
            clock.now += 1
            step.advance(100)
        assert step.rate == pytest.approx(100, rel=0.05)
        assert step.seconds_left == pytest.approx((10_000 - 6_010) / 100, rel=0.05)


def test_an_unknown_total_shows_no_time_left_until_it_is_known(clock, lines):
    with plain(clock).step("reading", unit="rows") as step:
        clock.now += 11
        step.advance(1100, note="part 3")
        assert step.seconds_left is None
        step.set_total(2200)
        assert step.seconds_left == pytest.approx(11)
    assert lines.messages == [
        "reading: started",
        "reading 1,100 rows, 100 rows/s, part 3",
        "reading: 1,100 rows in 11 s, 100 rows/s, part 3",
    ]


def test_short_nested_steps_are_not_worth_a_line(clock, lines):
    progress = plain(clock)
    with progress.step("folds", total=2, unit="folds") as folds:
        for seconds in (3, 20):
            with progress.step("fitting", total=100, unit="steps") as step:
                clock.now += seconds
                step.advance(100)
            folds.advance()
    assert [line for line in lines.messages if line.startswith("fitting:")] == ["fitting: 100 steps in 20 s, 5 steps/s"]
    assert lines.messages[-1] == "folds: 2 folds in 23 s, 5.2 folds/min"


def test_a_step_that_fails_says_how_far_it_came_and_lets_the_error_through(clock, lines):

    def fail_after_three():
        with plain(clock).step("features", total=10) as step:
            step.advance(3)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail_after_three()
    assert lines.messages[-1] == "features stopped at 3/10 images"


def test_threads_lose_no_count():
    progress = Progress(Console(file=io.StringIO()))
    with progress.step("features", total=8000) as step:

        def work():
            for _ in range(1000):
                step.advance()

        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert step.done == 8000


def test_silent_progress_says_nothing(clock, lines):
    progress = Progress(Console(file=io.StringIO(), force_terminal=True), silent=True, clock=clock)
    with progress.step("features", total=10) as step:
        clock.now += 60
        step.advance(10)
    assert lines.messages == []
    assert progress.console.file.getvalue() == ""


def test_on_a_terminal_nested_steps_are_bars_that_go_away():
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=True, width=100, _environ={"TERM": "xterm"}))
    with progress.step("folds", total=2, unit="folds") as folds, progress.step("features", total=1000) as step:
        step.advance(500)
        folds.advance()
        bars = progress._bars
        assert [task.description for task in bars.tasks] == ["folds", "features"]
        bars.refresh()
    assert "features" in screen.getvalue()
    assert "\x1b[" in screen.getvalue()
    assert progress._bars is None
