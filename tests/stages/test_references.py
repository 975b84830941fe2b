import numpy as np
import pytest

from cleanscale.errors import StageError
from cleanscale.maths.references import make_references
from cleanscale.stages.references import of_all_images, stored, to_table
from cleanscale.storage.rows import in_memory
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table

SIZES = np.array([3, 40, 12])
RANGE = [[Shard(index=0, label_start=2, label_stop=10, part=0, parts=1, rows=55)]]


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    label_N = np.repeat([2, 5, 9], SIZES).astype(np.int32)
    row_N = np.sort(rng.choice(1000, len(label_N), replace=False))
    feature_ND = rng.standard_normal((len(label_N), 6)).astype(np.float16)
    return label_N, row_N, feature_ND, make_references(feature_ND, label_N, row_N, per_class=10, seed=0)


@pytest.mark.parametrize("pointers", [True, False])
def test_references_survive_their_table_ragged_as_they_are(case, tmp_path, pointers):
    label_N, row_N, feature_ND, made = case
    stored_C = ~of_all_images(made, SIZES) if pointers else None
    write_table(str(tmp_path / "classes-000000002.parquet"), to_table(made, stored_C))
    found = stored(str(tmp_path), RANGE, 6)
    again = found.with_vectors(label_N, row_N, feature_ND)
    assert len(set(np.diff(made.offset_C1))) > 1
    np.testing.assert_array_equal(again.offset_C1, made.offset_C1)
    np.testing.assert_array_equal(again.label_C, made.label_C)
    np.testing.assert_array_equal(again.count_M, made.count_M)
    np.testing.assert_array_equal(again.nearest_row_M, made.nearest_row_M)
    np.testing.assert_allclose(in_memory(again.vector_MD), made.vector_MD, rtol=1e-3, atol=1e-3)


def test_a_class_that_keeps_its_images_is_stored_as_pointers(case, tmp_path):
    made = case[-1]
    write_table(str(tmp_path / "pointers.parquet"), to_table(made, ~of_all_images(made, SIZES)))
    table = read_table(str(tmp_path / "pointers.parquet"))
    assert table["of_images"].to_pylist() == [True, False, False]
    sizes = [len(vectors) for vectors in table["vectors"].to_pylist()]
    assert sizes == [0, *np.diff(made.offset_C1)[1:]]


def test_some_images_of_a_class_drawn_at_random_are_stored_as_vectors(case, tmp_path):
    label_N, row_N, feature_ND, _ = case
    drawn = make_references(feature_ND, label_N, row_N, per_class=10, method="random", seed=0)
    assert (drawn.count_M == 1).all()
    write_table(str(tmp_path / "classes-000000002.parquet"), to_table(drawn, ~of_all_images(drawn, SIZES)))
    again = stored(str(tmp_path), RANGE, 6).with_vectors(label_N, row_N, feature_ND)
    np.testing.assert_array_equal(in_memory(again.vector_MD), drawn.vector_MD)
    np.testing.assert_array_equal(again.nearest_row_M, drawn.nearest_row_M)


def test_features_that_are_not_those_of_the_references_are_refused(case, tmp_path):
    label_N, row_N, feature_ND, made = case
    write_table(str(tmp_path / "classes-000000002.parquet"), to_table(made, ~of_all_images(made, SIZES)))
    with pytest.raises(StageError, match="run again"):
        stored(str(tmp_path), RANGE, 6).with_vectors(label_N, row_N + 1, feature_ND)
