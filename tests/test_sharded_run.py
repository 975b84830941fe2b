"""A whole run whose heads are sharded, beside one whose heads are not."""

import json

import numpy as np
import pytest

from cleanscale.errors import ConfigError
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
