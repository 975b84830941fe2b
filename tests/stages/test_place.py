import time

from cleanscale.engine.settings import EngineSettings
from cleanscale.reporting.progress import Progress
from cleanscale.stages.place import Place


def test_times_of_a_stage_add_up_over_rounds():
    place = Place("run", 0, EngineSettings(), Progress())
    for _ in range(2):
        with place.timed("features", 10):
            time.sleep(0.01)
    assert place.seconds["features"] >= 0.02
    assert place.images["features"] == 20


def test_folders_of_a_run_are_those_of_the_contract():
    place = Place("s3://bucket/run", 0, EngineSettings(), Progress())
    assert place.path("metrics.json") == "s3://bucket/run/metrics.json"
    assert place.round_path(1, "features") == "s3://bucket/run/rounds/01/features"


def test_numbers_that_training_says_are_reported_with_how_far_it_was():
    heard = []
    place = Place("run", 0, EngineSettings(), Progress(), lambda *said: heard.append(said))
    with place.progress.step("classifier", 100) as step:
        hear = place.follow(step, "round_0/classifier")
        numbers = [{"done": 10.0 * k, "metrics": {"loss": 1 / k}} for k in range(1, 4)]
        hear({"done": 15.0, "numbers": []})
        hear({"done": 20.0, "numbers": numbers[:2]})
        hear({"done": 30.0, "numbers": numbers[1:]})  # the last ones again: each is reported once
    assert heard == [("round_0/classifier", {"loss": 1 / k}, 10 * k) for k in range(1, 4)]
