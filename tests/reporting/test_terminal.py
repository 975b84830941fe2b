"""What the summary says, and that it is plain where nobody looks at a terminal."""

import io

import numpy as np
import pytest

from cleanscale.reporting import terminal
from cleanscale.reporting.terminal import Found, Summary


@pytest.fixture
def summary():
    label_N = np.repeat([3, 5, 9], [20, 20, 4])
    called_N = np.zeros(44, bool)
    called_N[[0, 1, 20, 21, 22, 23, 24, 40, 41, 42]] = True
    measured = {"value": 19.9, "low": 18.2, "high": 21.6, "n": 24870}
    top1 = {"value": 71.07, "low": 69.5, "high": 72.7, "n": 3000}
    return Summary(
        title="glyphs",
        found=Found.count(label_N, called_N, np.where(called_N, 0.1, 0.95)),
        class_names={3: "three [bold]", 5: "five", 9: "nine"},
        metrics={
            "detection": {
                "transfer": {
                    "error_per_class": {"held_out_classes": measured},
                    "auroc": {"held_out_classes": {"value": 0.9, "low": 0.88, "high": 0.92, "n": 24870}},
                },
                "naive": {"error_per_class": {"held_out_classes": {**measured, "value": 38.0}}},
            },
            "calibration": {"transfer": {"expected_calibration_error": {"value": 0.02, "low": 0.01, "high": 0.03}}},
            "classification": {"round_0": {"top1": top1}, "round_1": {"top1": {**top1, "value": 73.2}}},
            "difference": {
                "classification": {"round_1": {"round_0": {"top1": {"value": 2.1, "low": 1.2, "high": 3.0, "n": 3000}}}}
            },
        },
        rejected={"unreadable image": 3, "duplicate id": 12, "unknown label": 0},
        places={"relevance table": "s3://bucket/" + "deep/" * 20 + "relevance"},
        seconds=223,
    )


def _text(summary):
    stream = io.StringIO()
    terminal.print_summary(terminal.report_console(stream), summary)
    return stream.getvalue()


def test_the_summary_says_what_where_how_sure_and_where_the_files_are(summary):
    text = _text(summary)
    assert "glyphs: done in 3 min 43 s" in text
    assert "10 of 44 labels are called wrong (22.7 %), in 3 of 3 classes" in text
    assert "90.0 % of those are wrong indeed; in all 11 labels are wrong" in text
    assert "not verified  19.9 [18.2, 21.6]  38.0 [18.2, 21.6]  0.900 [0.880, 0.920]  24,870" in text
    assert "0.020 [0.010, 0.030]" in text
    assert "+2.10 [+1.20, +3.00]" in text
    assert text.index("duplicate id") < text.index("unreadable image")
    assert "unknown label" not in text
    assert "relevance table  " + summary.places["relevance table"] in text


def test_the_worst_classes_come_first_and_too_small_ones_not_at_all(summary):
    text = _text(summary)
    assert text.index("five") < text.index("three [bold]")
    assert "nine" not in text


def test_a_pipe_gets_plain_lines_of_at_most_100_columns(summary):
    text = _text(summary)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines() if "s3://" not in line) <= 100


def test_a_run_without_truth_or_test_set_says_only_what_it_knows():
    found = Found.count(np.array([1, 2]), np.zeros(2, bool), np.array([0.9, 0.8]))
    text = _text(Summary(title="mine", found=found))
    assert "0 of 2 labels are called wrong (0.0 %), in 0 of 2 classes." in text
    assert "How sure" not in text
    assert "Accuracy" not in text
    assert "Rows left out" not in text


def test_counts_of_shards_add_up_to_those_of_the_table():
    rng = np.random.default_rng(0)
    label_N, called_N, probability_N = rng.integers(7, size=90), rng.random(90) < 0.3, rng.random(90)
    whole = Found.count(label_N, called_N, probability_N)
    parts = [Found.count(label_N[i::4], called_N[i::4], probability_N[i::4]) for i in range(4)]
    merged = Found.merge(parts)
    for name in ("label_C", "images_C", "called_wrong_C", "expected_wrong_C", "expected_hits_C"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name))
    assert len(Found.merge([]).label_C) == 0
