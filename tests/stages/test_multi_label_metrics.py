import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale import schema
from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.settings import EngineSettings
from cleanscale.reporting.progress import Progress
from cleanscale.stages import ingest, label_edges
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.label_cleaning import LABELS
from cleanscale.stages.multi_label_metrics import class_frequency_and_noise, labels
from cleanscale.stages.place import Place
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import write_table

CLASSES = 4


@pytest.fixture
def measured(tmp_path):
    """measured(noisy lists, true lists or None for unknown) -> (error table, noise rate of each class), cleaning having
    taken the last label of every image away."""

    def do(noisy: list[list[int]], true: list[list[int] | None]):
        folder = tmp_path / f"{len(noisy)}"
        folder.mkdir()
        place = Place(str(folder / "run"), 0, EngineSettings(), Progress())
        train = ingested(place, str(folder / "data.parquet"), noisy, true)
        edges = label_edges.noisy(train, train.accepted_rows())
        last_E = np.append(edges.image_E[1:] != edges.image_E[:-1], True)
        ones = np.ones(len(last_E), np.int8)
        columns = [edges.image_E, [str(k) for k in edges.image_E], edges.label_E, ones, -ones, np.where(last_E, 0.1, 1)]
        table = pa.table(dict(zip(schema.CLEANED.names, columns, strict=True))).cast(schema.CLEANED)
        shard = Shard(index=0, label_start=0, label_stop=CLASSES, part=0, parts=1, rows=len(noisy))
        write_table(str(folder / "cleaned" / LABELS / f"{shard.name}.parquet"), table)
        features = FeatureShards("nowhere", "", 2, (shard,))
        with in_this_process(Here()):
            errors = labels(place, train, features, str(folder / "cleaned"), 0.5, resamples=20)
        return errors, class_frequency_and_noise(train)[1]

    return do


def ingested(place: Place, uri: str, noisy, true) -> Ingested:
    kind = pa.list_(pa.int64())
    feature = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * len(noisy), np.float32)), 2)
    table = {"id": [str(k) for k in range(len(noisy))], "label": pa.array(noisy, kind), "feature": feature}
    pq.write_table(pa.table(table | {"true_label": pa.array(true, kind)}), uri)
    with in_this_process(Here()):
        return ingest.run(place, place.path("ingest"), uri, DataSettings(true_label="true_label"))


def test_images_of_unknown_truth_are_as_if_they_were_not_there_and_an_empty_list_says_that_no_label_is_right(measured):
    noisy, true = [[0, 1], [1, 2], [0, 3], [3]], [[0], [], [0, 1, 3], [3]]
    alone, rate_C = measured(noisy, true)
    assert alone["noisy"]["error_of_labels"]["value"] == pytest.approx(100 * 3 / 7)
    assert alone["noisy"]["false_per_image"]["value"] == 3 / 4
    assert alone["noisy"]["missing_per_image"]["value"] == 1 / 4
    assert alone["cleaned"]["error_of_labels"]["value"] == pytest.approx(100 * 3 / 7)
    np.testing.assert_allclose(rate_C, [0, 1, 1, 0])
    # Class 2 has known truth of 1 of 8 images: fewer than say what its rate is.
    more, rate_C = measured([[2, 3], *noisy, *[[2]] * 6], [None, *true, *[None] * 6])
    assert more == alone
    np.testing.assert_allclose(rate_C, [0, 1, np.nan, np.nan])


def test_without_any_truth_nothing_is_said(measured):
    errors, rate_C = measured([[0], [1, 2]], [None, None])
    assert errors == {}
    assert np.isnan(rate_C).all()
