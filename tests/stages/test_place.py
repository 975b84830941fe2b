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


def test_each_number_that_training_says_is_reported_once_with_its_step():
    heard = []
    place = Place("run", 0, EngineSettings(), Progress(), lambda *said: heard.append(said))
    with place.progress.step("classifier", 100) as step:
        hear = place.follow(step, "round_0/classifier")
        history = [{"step": k, "loss": 1 / (k + 1)} for k in range(3)]
        hear({"done": 15.0, "history": []})
        hear({"done": 20.0, "history": history[:2]})
        hear({"done": 30.0, "history": history})
    assert heard == [("round_0/classifier", {"loss": 1 / (k + 1)}, k) for k in range(3)]


class Steps:
    """A progress step that adds up."""

    done = 0

    def advance(self, count: int) -> None:
        self.done += count


def test_progress_waits_where_training_goes_on_from_further_back():
    place, step = Place("run", 0, EngineSettings(), Progress()), Steps()
    hear = place.follow(step, "classifier")
    shown = []
    for done in (40.0, 60.0, 50.0, 55.0, 70.0, 100.0):
        hear({"done": done, "history": []})
        shown.append(step.done)
    assert shown == [40, 60, 60, 60, 70, 100]
