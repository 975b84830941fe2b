"""Loops and shards in the calling process give what worker groups and tasks give."""

from pathlib import Path

import numpy as np
import pytest

from cleanscale.config import Settings
from cleanscale.engine.here import Here, here, in_this_process
from cleanscale.engine.tasks import map_shards
from cleanscale.reporting.progress import Progress
from cleanscale.stages import cleannet
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.storage.manifests import read_manifest
from cleanscale.storage.tables import read_table


def test_shards_are_done_in_order_without_ray():
    with in_this_process(Here()):
        assert here() == Here()
        assert list(map_shards(lambda item, add: item + add, [1, 2, 3], 10)) == [(0, 11), (1, 12), (2, 13)]
    assert here() is None


@pytest.mark.slow
def test_cleannet_is_the_same_in_this_process_and_in_a_worker_group_and_looking_on_changes_nothing(
    features_run, tmp_path
):
    """Slow: a worker group takes seconds to start."""
    folder, settings = features_run.folder, features_run.settings
    features = FeatureShards.of(f"{folder}/rounds/00/features", manifest(folder / "rounds/00/features"))
    sets = f"{folder}/rounds/00/references", manifest(folder / "rounds/00/references").fingerprint
    checked = read_table(f"{folder}/ingest/train/verification.parquet")
    looked: list[tuple[int, np.ndarray]] = []

    def fit(name: str, **more) -> Path:
        place = Place(str(tmp_path), settings.run.seed, settings.engine, Progress(silent=True))
        cleannet.run(place, str(tmp_path / name), features, sets, checked, settings.cleannet, **more)
        return tmp_path / name

    group = fit("group")
    with in_this_process(Here()):
        alone = fit("alone")
        watched = fit("watched", on_cosines=lambda step, rows, cosines: looked.append((step, cosines)), cosines_every=4)
    for other in (alone, watched):
        assert (other / cleannet.MODEL).read_bytes() == (group / cleannet.MODEL).read_bytes()
        assert read_table(str(other / cleannet.CROSS_FITTED)).equals(read_table(str(group / cleannet.CROSS_FITTED)))
    resolved = Settings(cleannet=settings.cleannet).cleannet.resolved()
    start = resolved.start_steps
    assert [step for step, _ in looked] == [*range(4, start + 1, 4), start + resolved.steps, start + 2 * resolved.steps]
    assert np.isfinite(looked[0][1]).all()
    assert 0 < np.isfinite(looked[-2][1]).mean() < 1  # one fold of two
    assert np.isfinite(looked[-1][1]).all()


def manifest(folder: Path):
    found = read_manifest(str(folder))
    assert found is not None
    return found
