import pytest
from pydantic import ValidationError

from cleanscale.training.cleannet_settings import PRESETS, CleanNetSettings


def test_presets_name_only_fields_and_pass_their_bounds():
    for preset in PRESETS.values():
        assert CleanNetSettings(**preset).model_dump(include=set(preset)) == preset


def test_a_field_that_is_given_wins_over_the_preset():
    settings = CleanNetSettings(preset="published_code", omega=2.0, contrastive=1.0).resolved()
    assert (settings.omega, settings.contrastive) == (2.0, 1.0)
    assert (settings.references_per_class, settings.optimizer, settings.decay_at) == (32, "sgd", (30_000, 60_000))
    assert settings.resolved() == settings


def test_a_saved_preset_resolves_to_itself():
    settings = CleanNetSettings(preset="paper").resolved()
    assert CleanNetSettings(**settings.model_dump()).resolved() == settings


def test_the_paper_s_numbers():
    paper = CleanNetSettings(preset="paper").resolved()
    assert (paper.beta, paper.gamma, paper.rho, paper.references_per_class) == (0.1, 0.1, 0.1, 50)
    assert (paper.contrastive, paper.reconstruction) == (0, "sum")


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError):
        CleanNetSettings(betta=0.1)
