import numpy as np
import pytest

from cleanscale.maths.keyed_random import Purpose, sampled

ROWS = np.arange(20_000)


@pytest.mark.parametrize("share", [1.0, 1.5, 40.0])
def test_a_share_of_one_or_more_is_everything(share):
    assert sampled(0, Purpose.PROJECTION, ROWS, share).all()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999999])
def test_about_the_share_is_drawn_and_more_of_it_holds_what_less_did(share):
    drawn_N = sampled(3, Purpose.PROJECTION, ROWS, share)
    assert drawn_N.mean() == pytest.approx(share, abs=0.015)
    assert not (drawn_N & ~sampled(3, Purpose.PROJECTION, ROWS, share + 0.1)).any()


def test_whether_a_row_is_drawn_depends_on_no_other_row():
    whole_N = sampled(1, Purpose.EVALUATION, ROWS, 0.4)
    np.testing.assert_array_equal(sampled(1, Purpose.EVALUATION, ROWS[7::13], 0.4), whole_N[7::13])
