import contextlib
import time

from cleanscale.engine.settings import EngineSettings
from cleanscale.reporting.progress import Progress
from cleanscale.stages.place import Place
from cleanscale.storage import uris


def test_times_of_a_stage_add_up_over_rounds():
    place = Place("run", 0, EngineSettings(), Progress())
    for _ in range(2):
        with place.timed("features", 10):
            time.sleep(0.01)
    assert place.seconds["features"] >= 0.02
    assert place.images["features"] == 20


def test_the_time_of_a_stage_is_kept_for_a_run_that_goes_on(tmp_path):
    def place() -> Place:
        return Place(str(tmp_path), 0, EngineSettings(), Progress())

    first, second = place(), place()
    with first.timed("classifier", 10, folder=first.round_path(0, "classifier")):
        time.sleep(0.02)
    with contextlib.suppress(KeyboardInterrupt), first.timed("features", 5, folder=first.round_path(0, "features")):
        time.sleep(0.02)
        raise KeyboardInterrupt
    with first.timed("evaluate"):
        pass
    with second.timed("features", 5, folder=second.round_path(0, "features")):
        time.sleep(0.02)
    with second.timed("classifier", 10, folder=second.round_path(1, "classifier")):
        time.sleep(0.02)
    seconds, images = second.took(newest_round=1)
    assert seconds["classifier"] >= 0.04  # that of round 0 was complete before
    assert seconds["features"] >= 0.04  # both attempts
    assert images == {"classifier": 20, "features": 5}
    assert set(seconds) == {"classifier", "features"}
    assert second.took(newest_round=0)[1]["classifier"] == 10  # a round that these settings do not have any more
    uris.remove_tree(second.round_path(0, "classifier"))  # redone: its time went with it
    assert place().took(newest_round=1)[1]["classifier"] == 10


def test_what_is_reported_in_a_round_says_so():
    heard = []
    place = Place("run", 0, EngineSettings(), Progress(), lambda *said: heard.append(said))
    inside = place.of_round(1)
    inside.report("classifier", {"loss": 1.0}, 3)
    assert heard == [("round_1/classifier", {"loss": 1.0}, 3)]
    with inside.timed("features", 1):
        pass
    assert place.images == {"features": 1}


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
