import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cleanscale.datasets.fragments import plan_fragments
from cleanscale.datasets.settings import DataSettings
from cleanscale.stages.images import Images, request, requests_in_order, unreadable_reasons
from cleanscale.training.transforms import AugmentationSettings


def png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def plan(tmp_path):
    """Ten grey pictures, each as bright as its row; row 3 is no picture, row 6 is missing."""
    images = [png(10 * row) for row in range(10)]
    images[3], images[6] = b"no picture", None
    table = pa.table({"id": [str(k) for k in range(10)], "label": [0] * 10, "image": pa.array(images, pa.binary())})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=4)
    return plan_fragments(str(tmp_path / "data.parquet"), DataSettings(), str(tmp_path / "work"))


@pytest.fixture
def images():
    return Images(DataSettings(), AugmentationSettings(evaluation_crop=1.0, scale_min=1.0), size=4, seed=0)


def test_images_come_in_the_order_that_was_asked_for_whatever_holds_them(plan, images):
    row_M = np.array([8, 0, 5])
    found = images.evaluation(request(plan, row_M))
    np.testing.assert_array_equal(found["row"], row_M)
    assert found["image"].shape == (3, 3, 4, 4)
    assert found["image"].dtype == np.uint8
    np.testing.assert_array_equal(found["image"][:, 0, 0, 0], 10 * row_M)
    assert found["ok"].all()


def test_an_image_that_cannot_be_read_is_black_and_not_ok(plan, images):
    for found in (images.evaluation(request(plan, np.arange(10))), images.training(request(plan, np.arange(10)), 0)):
        assert np.flatnonzero(~found["ok"]).tolist() == [3, 6]
        assert (found["image"][[3, 6]] == 0).all()


def test_why_images_cannot_be_read_is_found_out(plan):
    reasons = unreadable_reasons(request(plan, np.array([3, 6])), DataSettings())
    assert [one["row"] for one in reasons] == [3, 6]
    assert all(one["reason"] for one in reasons)


def test_an_image_is_varied_the_same_way_in_whatever_company(plan):
    varied = Images(DataSettings(), AugmentationSettings(scale_min=0.5), size=4, seed=3)
    together = varied.training(request(plan, np.array([1, 2, 4, 5])), epoch=2)
    alone = varied.training(request(plan, np.array([4])), epoch=2)
    np.testing.assert_array_equal(together["image"][2], alone["image"][0])


def test_requests_hold_all_rows_once_in_order(plan):
    rows = np.array([0, 1, 2, 4, 7, 8, 9])
    pieces = [row_M.tolist() for row_M, _ in requests_in_order(plan, rows, 3)]
    assert pieces == [[0, 1, 2], [4, 7, 8], [9]]
