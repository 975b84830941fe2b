import pytest

from cleanscale.detectors import DETECTORS
from cleanscale.errors import ConfigError
from cleanscale.registry.register import refuse_own_signals


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_detector_that_needs_the_runs_images_is_refused_with_the_way_to_compare_it(name):
    if not DETECTORS[name].own_signals:
        assert refuse_own_signals(name) is None
        return
    with pytest.raises(ConfigError, match=rf"'{name}'.*transfer, .*--detector.compare {name}"):
        refuse_own_signals(name)
