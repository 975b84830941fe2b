import numpy as np
import pytest

from cleanscale.errors import DataError
from cleanscale.serving.features import FromFeatures, without_infinite
from cleanscale.serving.model_folder import read_description, write_description


def test_features_are_rounded_as_the_job_keeps_them_and_unusable_ones_have_a_reason():
    made = FromFeatures(3)([[0.1, 0.2, 0.3], [1.0, 2.0], [1e6, 0, 0], np.array([np.nan, 0, 0]), [4.0, 5.0, 6.0]])
    assert made.feature_XD.dtype == np.float16
    np.testing.assert_array_equal(made.feature_XD, np.array([[0.1, 0.2, 0.3], [4, 5, 6]], np.float16))
    assert made.usable.tolist() == [0, 4]
    assert made.error_N[1] == "found a feature of 2 numbers; expected 3"
    assert made.error_N[2] == made.error_N[3] == "found NaN or numbers beyond float16; expected finite ones up to 65504"


def test_no_rows_are_no_features():
    assert FromFeatures(3)([]).feature_XD.shape == (0, 3)


def test_an_image_whose_feature_is_not_finite_is_left_out_as_in_the_job():
    made = without_infinite(np.array([[1, 2], [np.inf, 0]], np.float16), [None, "unreadable", None])
    assert made.error_N == [None, "unreadable", "its feature is not finite"]
    assert made.feature_XD.tolist() == [[1, 2]]


def test_a_model_of_another_kind_or_format_is_refused_with_what_to_do(tmp_path):
    write_description(tmp_path, "classifier", {"input": "images"})
    assert read_description(tmp_path, "classifier")["input"] == "images"
    with pytest.raises(DataError, match="is a classifier of format 1; expected a detector"):
        read_description(tmp_path, "detector")
