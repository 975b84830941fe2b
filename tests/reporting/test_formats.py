"""Numbers as people read them."""

import pytest

from cleanscale.reporting import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (91, "1 min 31 s"), (7500, "2 h 05 min"),
     (273600, "3 d 04 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(12345.6, "12,346 images/s"), (410, "410 images/s"), (3.21, "3.2 images/s"), (1 / 15, "4 images/min"),
     (1 / 3600, "1 images/h")],
)  # fmt: skip
def test_rates(per_second, text):
    assert formats.rate(per_second, "images") == text


def test_intervals_say_when_there_is_none():
    assert formats.interval({"value": 19.94, "low": 18.2, "high": 21.6, "n": 9}, unit=" %") == "19.9 % [18.2, 21.6]"
    assert formats.interval({"value": 2.0, "low": 1.0, "high": 3.0}, signed=True) == "+2.0 [+1.0, +3.0]"
    assert formats.interval({"value": None, "low": None, "high": None, "n": 0}) == "not measured"
    assert formats.interval({"value": 1.0, "low": None, "high": None}) == "1.0"
    assert formats.share(1, 0) == "-"
