"""Search spaces: what a file may say, and that what it may not say is found before anything runs."""

import pytest

from cleanscale.config import Settings
from cleanscale.engine.search import Dimension
from cleanscale.errors import ConfigError
from cleanscale.tuning.space import dimensions, reference_cases, with_values


def test_dotted_and_nested_names_are_the_same():
    wanted = {"cleannet.beta": Dimension("log_uniform", (0.01, 1.0)), "heads.epochs": Dimension("choice", (4, 8))}
    nested = {"cleannet": {"beta": {"log_uniform": [0.01, 1.0]}}, "heads": {"epochs": {"choice": [4, 8]}}}
    dotted = {"cleannet.beta": {"log_uniform": [0.01, 1.0]}, "heads.epochs": {"choice": [4, 8]}}
    assert dimensions(nested) == dimensions(dotted) == wanted


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"cleannet": {"beta": 0.1}}, r"space\.cleannet\.beta is 0\.1; expected what it may be"),
        ({"cleannet": {"beta": {"normal": [0, 1]}}}, r"space\.cleannet\.beta is .*normal.*expected one of uniform"),
        ({"cleannet": {"beta": {"uniform": [1.0, 0.1]}}}, r"space\.cleannet\.beta is .*the lower first"),
        ({"cleannet": {"beta": {"log_uniform": [0.0, 0.1]}}}, r"space\.cleannet\.beta is .*above 0"),
        ({"cleannet": {"beta": {"uniform": [0.0, 1.0], "choice": [1]}}}, r"space\.cleannet\.beta is .*expected one of"),
        ({"heads": {"epochs": {"integers": [1.5, 3]}}}, r"space\.heads\.epochs is .*whole numbers"),
        ({"heads": {"epochs": {"choice": []}}}, r"space\.heads\.epochs is .*at least one value"),
        ({"cleannet": {"rho": {"uniform": [0.0, 3.0]}}}, r"space\.cleannet\.rho reaches 3\.0; expected.*narrow it"),
        ({"cleannet": {"bta": {"uniform": [0.0, 1.0]}}}, r"space\.cleannet\.bta is no setting"),
        ({"nothing": {"beta": {"uniform": [0.0, 1.0]}}}, r"space\.nothing\.beta is no setting"),
        ({"backbone": {"name": {"choice": ["a", "b"]}}}, r"space\.backbone\.name cannot be searched.*\[backbone\]"),
    ],
)
def test_a_wrong_space_is_one_message_that_names_the_setting(space, said):
    with pytest.raises(ConfigError, match=said):
        dimensions(space)


def test_reference_sets_are_made_for_every_value_once():
    space = {
        "cleannet.references_per_class": Dimension("choice", (5, 10)),
        "cleannet.beta": Dimension("uniform", (0, 1)),
    }
    assert reference_cases(space) == [{"cleannet.references_per_class": 5}, {"cleannet.references_per_class": 10}]
    assert len(reference_cases({"references.per_class": Dimension("integers", (3, 6))})) == 4
    assert reference_cases({"cleannet.beta": Dimension("uniform", (0, 1))}) == [{}]
    with pytest.raises(ConfigError, match=r"references\.per_class.*at most 64"):
        reference_cases({"references.per_class": Dimension("integers", (1, 100))})


def test_a_trials_values_leave_what_was_not_given_to_the_preset():
    run = Settings(cleannet={"preset": "paper", "steps": 10})
    settings = with_values(run, {"cleannet.beta": 0.7, "detector.delta": 0.2})
    assert (settings.cleannet.beta, settings.cleannet.steps, settings.detector.delta) == (0.7, 10, 0.2)
    assert settings.cleannet.resolved().gamma == run.cleannet.resolved().gamma == 0.1
    assert run.cleannet.beta == 0.1
