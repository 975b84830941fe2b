"""Judging apart from a round: with the parts that a detector needs, and no others."""

import pyarrow.compute as pc

from cleanscale.engine.here import Here, in_this_process
from cleanscale.judging import judge
from cleanscale.pipeline import read_inputs
from cleanscale.reporting.progress import Progress
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.storage.manifests import read_manifest
from cleanscale.storage.tables import read_table


def test_detectors_that_need_no_cleannet_decide_the_same_without_it(features_run, tmp_path, by_row):
    settings, round_0 = features_run.settings, features_run.folder / "rounds" / "00"
    train = read_inputs(settings, Place(str(features_run.folder), 0, settings.engine, Progress(silent=True))).train
    made = {}
    for name in ("features", "references", "evidence"):
        manifest = read_manifest(str(round_0 / name))
        assert manifest is not None
        made[name] = manifest
    shards = FeatureShards.of(str(round_0 / "features"), made["features"])
    sets, seen = ((str(round_0 / name), made[name].fingerprint) for name in ("references", "evidence"))
    place = Place(str(tmp_path), settings.run.seed, settings.engine, Progress(silent=True))
    with in_this_process(Here()):
        folder, _ = judge(
            settings, place, train, shards, sets, seen, train.verification(), place.path, with_cleannet=False
        )
    assert not (tmp_path / "cleannet").exists()
    for shard in shards.shards:
        with_it = read_table(str(round_0 / "relevance" / "decisions" / f"{shard.name}.parquet"))
        without = read_table(f"{folder}/decisions/{shard.name}.parquet")
        assert "transfer.mislabeled" in without.column_names
        assert not [name for name in without.column_names if name.startswith("cleannet")]
        assert without.equals(with_it.select(without.column_names))
    whole, part = by_row(round_0 / "relevance"), by_row(tmp_path / "relevance")
    for name in ("probability_correct", "weight", "mislabeled"):
        assert part[name].equals(whole[name]), name
    # Suggestions without CleanNet are the classifier's alone.
    assert part["suggested_label"].null_count == whole["suggested_label"].null_count
    assert part["suggested_relevance"].null_count == part.num_rows
    assert pc.all(pc.is_nan(part["relevance"])).as_py()
