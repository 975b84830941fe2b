"""How busy the machine is, beside the metrics of the run."""

from functools import partial

import ray  # noqa: F401  it brings psutil with it, as in every run
from waiting import wait_until

from cleanscale.tracking import TrackingSettings, tracked
from cleanscale.tracking.store import connect
from cleanscale.tracking.system import SystemMetrics


def test_the_machine_is_measured_while_a_run_lasts(beside, runs_in, capfd):
    client = connect(f"sqlite:///{beside / 'mlflow.db'}")
    with tracked(TrackingSettings(system_metrics_s=0.2), str(beside / "small")) as tracker:
        history = partial(client.get_metric_history, tracker.run_id, "system/cpu_utilization_percentage")
        wait_until(lambda: len(history()) >= 2, "two measurements", longest_s=60)
    metrics = runs_in(beside / "mlflow.db")["small"].data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    assert {"system/disk_usage_percentage", "system/network_receive_megabytes"} <= set(metrics)
    assert capfd.readouterr() == ("", "")


def test_measuring_can_be_switched_off(beside, runs_in):
    with tracked(TrackingSettings(system_metrics_s=0), str(beside / "small")):
        pass
    assert runs_in(beside / "mlflow.db")["small"].data.metrics == {}


class Heard:
    """A tracker that counts."""

    def __init__(self):
        self.times = 0

    @property
    def run(self):
        return type("Run", (), {"started_ms": 0})

    def report(self, *_):
        self.times += 1


def test_measuring_ends_with_the_run():
    heard = Heard()
    with SystemMetrics(heard, 0.001) as measured:
        pass
    assert not measured._thread.is_alive()
    assert heard.times >= 1
