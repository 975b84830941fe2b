"""A whole run whose heads are sharded, beside one whose heads are not."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from cleanscale.errors import ConfigError
from cleanscale.registry.classifier_artifacts import classifier_artifacts
from cleanscale.registry.finished_run import FinishedRun
from cleanscale.serving.classifier import ServedClassifier
from cleanscale.stages import head_files
from cleanscale.stages.evidence_heads import row_fold_heads
from cleanscale.stages.head_classifier import load_frozen


@pytest.fixture(scope="module")
def sharded_run(finish, small_settings, feature_values, tmp_path_factory, in_this_process):
    folder = tmp_path_factory.mktemp("sharded") / "run"
    with in_this_process():
        return finish(small_settings(folder, feature_values, {"heads": {"sharded": "on", "epochs": 2}}))


def test_sharded_heads_serve_every_stage_as_dense_ones_do(sharded_run, features_run):
    """Out-of-fold heads, the weighted classifier that fine-tunes the first, and their predictions."""
    for folder in ("rounds/00/evidence/head-0", "rounds/00/classifier/head", "rounds/01/classifier/head"):
        assert (sharded_run.folder / folder / head_files.LAYERS).exists()
    first, last = (load_frozen(str(sharded_run.folder / f"rounds/0{k}/classifier")) for k in (0, 1))
    assert (first.weight_CH != last.weight_CH).any()
    assert len(row_fold_heads(str(sharded_run.folder / "rounds/00/evidence"), 2)) == 2
    found, expected = (json.loads((run.folder / "metrics.json").read_text()) for run in (sharded_run, features_run))
    for name in ("round_0", "round_1"):
        top1 = [metrics["classification"][name]["top1"]["value"] for metrics in (found, expected)]
        assert top1[0] > top1[1] - 4
    auroc = [metrics["detection"]["transfer"]["auroc"]["value"] for metrics in (found, expected)]
    assert np.diff(auroc)[0] < 0.03


def test_a_noise_model_and_a_sharded_head_are_refused_together(
    finish, small_settings, feature_values, tmp_path, train_here
):
    more = {"heads": {"sharded": "on", "epochs": 1}, "treatment": {"name": "forward"}}
    with pytest.raises(ConfigError, match="sharded off"):
        finish(small_settings(tmp_path / "run", feature_values, more))


@pytest.fixture(scope="module")
def sharded_images_run(call_main, glyphs_toml, tmp_path_factory, in_this_process):
    folder = tmp_path_factory.mktemp("sharded_images") / "run"
    with in_this_process():
        status, said = call_main(
            ["--config", str(glyphs_toml), "--run.uri", str(folder), "--heads.sharded", "on", "--heads.epochs", "1"]
        )
    assert status == 0, said
    return folder


def test_a_classifier_of_images_is_sharded_and_fine_tuned_with_weights(sharded_images_run, glyphs_run):
    for number in ("00", "01"):
        folder = sharded_images_run / "rounds" / number / "classifier"
        assert sorted(file.name for file in folder.glob("head*")) == ["head"], "no checkpoint stays"
        with safe_open(str(folder / "model.safetensors"), "np") as file:
            assert not [name for name in file.keys() if "output" in name]  # noqa: SIM118
    first, last = (load_frozen(str(sharded_images_run / f"rounds/0{k}/classifier")) for k in (0, 1))
    cosine_C = (first.weight_CH * last.weight_CH).sum(1) / np.sqrt(
        (first.weight_CH**2).sum(1) * (last.weight_CH**2).sum(1)
    )
    assert ((cosine_C > 0.5) & (cosine_C < 1 - 1e-6)).all(), "begun with the first and changed"
    found, expected = (
        json.loads((folder / "metrics.json").read_text())["classification"]
        for folder in (sharded_images_run, glyphs_run.folder)
    )
    for name in ("round_0", "round_1"):
        assert found[name]["top1"]["value"] > expected[name]["top1"]["value"] - 15  # of 48 images


def test_a_sharded_classifier_of_images_is_registered_whole(sharded_images_run, tmp_path):
    run = FinishedRun.open(str(sharded_images_run))
    classifier_artifacts(run, tmp_path / "model")
    served = ServedClassifier.load(tmp_path / "model")
    own = run.test_predictions()
    test = pq.ParquetDataset(sharded_images_run / "glyphs" / "test").read()
    images = pd.DataFrame({"image": test["image"].take(own["row"]).to_pylist()})
    answers = served.predict(images)
    predicted_N = np.array([labels[0] for labels in answers["top_labels"]])
    assert (predicted_N == own["predicted"].combine_chunks().flatten().to_numpy().reshape(len(own), -1)[:, 0]).all()
