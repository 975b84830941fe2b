"""`cleanscale plan`: what a run would take, checked against runs that were measured."""

import json

import pytest

from cleanscale import cli, plan


def planned(capsys, *arguments: str) -> dict:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_says_hours_bytes_and_what_breaks_first_in_words(capsys):
    assert plan.main(["--images", "2e7", "--classes", "1e6", "--memory", "12"]) == 0
    said = capsys.readouterr().out
    assert "20,000,000 images, 1,000,000 classes" in said
    for part in ("out-of-fold heads", "class shards", "disk at its fullest", "memory of the fullest node"):
        assert part in said
    assert "break" in said


def test_json_has_the_same_with_the_constants_and_their_sources(capsys):
    found = planned(capsys, "--images", "1e6", "--classes", "1000")
    assert found["hours"] == pytest.approx(sum(one["hours"] for one in found["stages"]))
    assert found["breaks_first"] == found["limits"][0]["what"]
    assert all(one["source"] for one in found["constants"].values())


def test_a_run_that_cannot_fit_is_told_what_breaks_and_what_to_do(capsys):
    assert plan.main(["--images", "1e9", "--classes", "1e7", "--memory", "16", "--disk", "500"]) == 0
    said = capsys.readouterr().out
    assert "This breaks, the worst first:" in said
    assert "disk of the run folder" in said


def test_what_it_cannot_know_is_refused_with_a_remedy(capsys):
    assert plan.main(["--images", "10", "--classes", "20"]) == 2
    assert "correct --images or --classes" in capsys.readouterr().err
    assert plan.main(["--images", "1e6", "--classes", "100", "--from", "images", "--backbone", "mine"]) == 2
    assert "--gflop" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plan.main(["--images", "1.5", "--classes", "1"])
