from types import SimpleNamespace
from typing import Any

from cleanscale.stages import label_cleaning
from cleanscale.stages.ingest import VERIFICATION
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.label_cleaning_settings import CleaningSettings


def test_settings_of_heads_that_label_cleaning_does_not_follow_redo_nothing(monkeypatch):
    keys = []

    def open_stage(folder, name, settings, inputs):
        keys.append(settings)
        return SimpleNamespace(complete="made")

    monkeypatch.setattr(label_cleaning, "open_stage", open_stage)
    place: Any = SimpleNamespace(seed=0)
    features: Any = SimpleNamespace(fingerprint="features")
    data: Any = SimpleNamespace(fingerprint="data", verification=VERIFICATION.empty_table)

    def key(**heads):
        label_cleaning.run(place, "folder", features, data, CleaningSettings(), HeadSettings(**heads), backbone=None)
        return keys[-1]

    assert key(mixup=0.5, batch=7, label_smoothing=0.1, negatives=3) == key()
    for changed in ({"hidden_width": 3}, {"dropout": 0.5}, {"epochs": 3}, {"learning_rate": 1}, {"weight_decay": 0}):
        assert key(**changed) != key()
