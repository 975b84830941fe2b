"""What a sweep shows: the answer in words, the curve, and the settings tried."""

import io

import pytest
from PIL import Image

from cleanscale.reporting import sweeps
from cleanscale.reporting.terminal import report_console


def measured(value: float, half: float = 1.0) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "n": 100}


def point(share: float, labels_per_class: int, error: float, **more) -> dict:
    budget = {"classes": share, "labels_per_class": labels_per_class, "labels": 40 * share * labels_per_class}
    return budget | {"verified_classes": 40 * share, "error": {"transfer": {"evaluation": measured(error)}}} | more


@pytest.fixture
def summary() -> dict:
    gap = {"accuracy_minus_largest": measured(-0.5, 0.25), "accuracy": measured(57.0)}
    points = [point(0.5, 10, 22.0), point(1.0, 10, 20.0, **gap), point(1.0, 250, 19.9, accuracy=measured(57.5))]
    chosen = {"classes": 1.0, "labels_per_class": 10, "labels": 400.0}
    top = {"classes": 1.0, "labels_per_class": 250, "labels": 10_000.0}
    return {"detector": "transfer", "margin": 1.0, "stops_paying": chosen, "largest": top, "budgets": points}


def test_the_answer_names_the_budget_and_what_more_would_gain(summary):
    said = sweeps.answer(summary)
    assert "After 400 labels (100 % of the verified classes x 10) more verification stops paying" in said
    assert "up to 10,000 labels it gains less than 1 points" in said
    assert "-0.50 [-0.75, -0.25] points" in said


def test_without_an_answer_it_says_that_more_may_pay(summary):
    said = sweeps.answer(summary | {"stops_paying": None})
    assert "No smaller budget is sure" in said
    assert "10,000 labels" in said


def test_the_table_has_a_line_for_each_budget_and_fits_a_terminal(summary):
    file = io.StringIO()
    sweeps.print_budgets(report_console(file), summary, {"curve": "a.png", "numbers": "b.json"})
    lines = file.getvalue().splitlines()
    assert [line.split()[:3] for line in lines if " x " in line and line[0].isdigit()] == [
        ["20", "x", "10"],
        ["40", "x", "10"],
        ["40", "x", "250"],
    ]
    assert max(len(line) for line in lines) <= 100


@pytest.mark.parametrize("accuracy", [True, False])
def test_the_curve_is_a_picture_with_and_without_a_test_set(summary, accuracy):
    points = [p if accuracy else {k: v for k, v in p.items() if "accuracy" not in k} for p in summary["budgets"]]
    before = {"accuracy_without_verification": measured(55.0)} if accuracy else {}
    image = Image.open(io.BytesIO(sweeps.verification_budget(summary | before | {"budgets": points})))
    assert image.width > (1000 if accuracy else 500)


def test_the_settings_tried_are_listed_best_first(summary):
    trial = {"steps": 850, "ended": "whole", "values": {"cleannet.beta": 0.123456}}
    trials = [trial | {"name": name, "objective": error} for name, error in (("one", 20.5), ("other", 21.5))]
    found = {"trials": trials, "run": {"objective": 22.0}, "best": trials[0] | {"true_error": measured(21.0)}}
    file = io.StringIO()
    sweeps.print_search(report_console(file), found, {"best settings": "best.toml"})
    said = file.getvalue()
    assert said.index("20.50") < said.index("21.50")
    assert "0.1235" in said
    assert "21.0 [20.0, 22.0]" in said
