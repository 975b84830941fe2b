import pytest

from cleanscale.config import load
from cleanscale.errors import ConfigError
from cleanscale.tuning.shared import check_treatment


def test_a_sweep_refuses_treatments_that_are_more_than_weights_and_says_which_it_takes():
    for name in ("none", "soft", "hard", "probability"):
        check_treatment(load(["--treatment.name", name]))
    with pytest.raises(ConfigError, match=r"forward.*none, soft, hard, probability.*cleanscale.train"):
        check_treatment(load(["--treatment.name", "forward"]))
