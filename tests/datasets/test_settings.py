"""The data settings are what the command line shows."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cleanscale.datasets.settings import DataSettings


def test_every_setting_is_described_in_one_sentence() -> None:
    for name, field in DataSettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("wrong", [{"format": "zip"}, {"cache_size": 0}, {"label": ""}, {"trian": "x"}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate(wrong)
