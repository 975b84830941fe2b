"""Sweeps with Ray Tune. Slow: each starts processes for its trials."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import ray

from cleanscale.engine.search import STATE, Dimension, Plan, Reporter, concurrency, run_trials
from cleanscale.errors import ConfigError, StageError

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # trials cannot import a test module
pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self):
        self.ended_as, self.steps = {}, {}

    def started(self, config):
        pass

    def reported(self, config, numbers):
        self.steps.setdefault(key(config), []).append(numbers["steps"])

    def ended(self, config, *, failed):
        self.ended_as[key(config)] = "failed" if failed else "ended"


def key(config) -> str:
    return json.dumps(config, sort_keys=True)


class Quadratic:
    """Four reports that come near (x - 1)^2; a line in a file for each step that was really done."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, config: dict, reporter: Reporter) -> None:
        for step in range(1, 5):
            time.sleep(0.05)
            with (self.folder / f"{config['a.x']:.9f}").open("a") as file:
                file.write(f"{step}\n")
            reporter.report((config["a.x"] - 1) ** 2 + 1 / step, step)


def done(folder: Path) -> dict[float, int]:
    """Steps done by value of x."""
    return {float(file.name): len(file.read_text().split()) for file in folder.iterdir()}


def test_bad_trials_are_stopped_and_good_ones_are_not(tmp_path):
    work, heard = tmp_path / "work", Heard()
    work.mkdir()
    plan = Plan(
        str(tmp_path / "sweep"),
        seed=0,
        space={"a.x": Dimension("choice", (1.0, 5.0, 9.0, 13.0, 17.0, 21.0))},
        begin_with=[{"a.x": x} for x in (1.0, 5.0, 9.0, 13.0, 17.0, 21.0)],
        trials=6,
        stop_bad_after=1,
        most_steps=4,
        reduction=2,
        max_concurrent=1,
    )
    tried = {one.config["a.x"]: one for one in run_trials(Quadratic(work), plan, heard)}
    assert done(work)[1.0] == 4
    assert tried[1.0].objective == pytest.approx(0.25)
    assert [x for x, steps in done(work).items() if steps == 1] != []
    assert sum(done(work).values()) < 6 * 4
    assert set(heard.ended_as.values()) == {"ended"}
    assert all(steps == sorted(steps) for steps in heard.steps.values())


def test_the_search_finds_what_is_good_and_the_same_seed_tries_the_same(tmp_path):
    values = []
    for attempt in ("one", "other"):
        work = tmp_path / f"{attempt}-work"
        work.mkdir()
        space = {"a.x": Dimension("uniform", (-10.0, 10.0))}
        plan = Plan(str(tmp_path / attempt), seed=7, space=space, trials=4, max_concurrent=1)
        values.append([one.config["a.x"] for one in run_trials(Quadratic(work), plan, Heard())])
    assert values[0] == values[1]
    assert len(set(values[0])) == 4


class Fragile:
    """Fails for odd cases until somebody has mended them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, config: dict, reporter: Reporter) -> None:
        number = config["case"]["number"]
        with (self.folder / str(number)).open("a") as file:
            file.write("tried\n")
        if number % 2 and not (self.folder / "mended").exists():
            raise StageError(f"found {number}; expected an even one; mend it")
        reporter.report(float(number), 1)


def test_failed_trials_are_told_and_tried_again_by_the_same_call_and_finished_ones_are_not(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    plan = Plan(str(tmp_path / "sweep"), seed=0, cases=[{"number": n} for n in range(2)], max_failures=1)
    first, second = Heard(), Heard()
    tried = run_trials(Fragile(work), plan, first)
    assert sorted(first.ended_as.values()) == ["ended", "failed"]
    assert sorted(one.error or "" for one in tried)[-1] == "found 1; expected an even one; mend it"
    (work / "mended").touch()
    again = run_trials(Fragile(work), plan, second)
    assert sorted(one.objective for one in again) == [0, 1]
    assert [len((work / str(n)).read_text().split()) for n in range(2)] == [1, 2]


def test_when_every_trial_fails_the_users_error_is_the_message(tmp_path):
    plan = Plan(str(tmp_path / "sweep"), seed=0, cases=[{"number": 1}])
    with pytest.raises(StageError, match=r"all 1 trials failed.*found 1; expected an even one; mend it"):
        run_trials(Fragile(tmp_path), plan, Heard())
    assert (tmp_path / "sweep" / STATE).is_dir()


def meeting(config: dict, reporter: Reporter) -> None:
    from cleanscale.engine.here import here
    from cleanscale.engine.tasks import map_shards

    how = here()
    assert how is not None
    total = sum(found for _, found in map_shards(lambda item: item if os.getpid() else 0, [1, 2, 3]))
    reporter.report(float(total), how.threads)


def test_shards_of_a_trial_are_done_in_its_own_process(tmp_path):
    (one,) = run_trials(meeting, Plan(str(tmp_path / "sweep"), seed=0, cases=[{}]), Heard())
    assert (one.objective, one.steps) == (6.0, 1)


def test_as_many_trials_run_at_a_time_as_the_cluster_holds(tmp_path):
    def at_once(**pace) -> int:
        return concurrency(Plan("", seed=0, cases=[{}], **pace))

    assert at_once() == 2
    assert at_once(max_concurrent=1) == 1
    assert at_once(cpus_per_trial=2.0) == 1
    with pytest.raises(ConfigError, match=r"a trial needs 3 cores.*lower --tune\.cpus_per_trial"):
        at_once(cpus_per_trial=3.0)
    with pytest.raises(ConfigError, match="GPU"):
        at_once(use_gpu=True)
