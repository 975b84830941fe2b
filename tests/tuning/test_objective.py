"""The objective: errors of detectors on classes whose verification labels they were fitted without."""

import numpy as np
import pytest

from cleanscale.detectors import DETECTORS, Evidence
from cleanscale.maths.keyed_random import class_fold_masks
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.judged_shard import Sources, evidence_of_rows
from cleanscale.storage.manifests import read_manifest
from cleanscale.storage.tables import read_table
from cleanscale.tuning.objective import class_fold_error, needs_cleannet, needs_evidence, verified_evidence


def cosines(classes: int = 6, per_class: int = 30) -> tuple[Evidence, np.ndarray]:
    """Right labels have the higher cosine, by an amount that differs between classes."""
    rng = np.random.default_rng(3)
    label_N = np.repeat(np.arange(classes), per_class)
    verified_N = (rng.random(len(label_N)) < 0.7).astype(np.int8)
    cosine_N = (0.4 * verified_N + 0.1 * label_N + 0.15 * rng.standard_normal(len(label_N))).astype(np.float32)
    return Evidence(np.arange(len(label_N)), label_N, {"cleannet_cosine": cosine_N}), verified_N


def test_it_is_the_mean_error_per_class_of_detectors_fitted_on_the_other_folds():
    evidence, verified_N = cosines()
    wrong = np.zeros(len(evidence), bool)
    for left_N in class_fold_masks(evidence.label_N, 3, 5):
        fitted = DETECTORS["cleannet"].fit(evidence.select(~left_N), verified_N[~left_N], class_folds=3, seed=5)
        wrong[left_N] = fitted.decide(evidence.select(left_N)).mislabeled_N != (verified_N[left_N] == 0)
    slow = 100 * np.mean([wrong[evidence.label_N == c].mean() for c in range(6)])
    found = class_fold_error("cleannet", evidence, verified_N, class_folds=3, seed=5, delta=None)
    assert found == pytest.approx(slow)


def test_labels_of_a_class_have_no_part_in_how_it_is_judged():
    """Turned round, a fold's labels turn its own errors round and leave those of nothing else in it as they were."""
    evidence, verified_N = cosines()
    folds = class_fold_masks(evidence.label_N, 3, 5)

    def errors(seen_N: np.ndarray) -> float:
        found = class_fold_error("cleannet", evidence, seen_N, class_folds=3, seed=5, delta=None)
        assert found is not None
        return found

    # With two folds turned round, the third's errors are those of a threshold that was fitted on nonsense.
    assert errors(np.where(folds[0], verified_N, 1 - verified_N)) > errors(verified_N) + 20
    # With all turned round, nothing has changed but the names of right and wrong: a cosine cannot be turned round.
    assert errors(1 - verified_N) > errors(verified_N)


def test_a_given_delta_is_the_one_that_counts():
    evidence, verified_N = cosines()
    called_N = evidence.signals["cleannet_cosine"] < 0.33
    slow = 100 * np.mean([(called_N != (verified_N == 0))[evidence.label_N == c].mean() for c in range(6)])
    found = class_fold_error("cleannet", evidence, verified_N, class_folds=3, seed=5, delta=0.33)
    assert found == pytest.approx(slow)


def test_one_class_can_not_be_held_out():
    evidence, verified_N = cosines(classes=1)
    assert class_fold_error("cleannet", evidence, verified_N, class_folds=3, seed=5, delta=None) is None


def test_a_trial_makes_only_what_its_detector_looks_at():
    assert needs_cleannet("cleannet")
    assert not needs_evidence("cleannet")
    assert not needs_cleannet("transfer")
    assert needs_evidence("transfer")
    assert not needs_evidence("average")


@pytest.mark.parametrize("detector", ["transfer", "average"])
def test_signals_of_verified_images_are_those_that_the_run_judged_by(features_run, detector):
    """Their error is that of a run's own evidence, row by row."""
    folder, seed = features_run.folder, features_run.settings.run.seed
    manifest = read_manifest(f"{folder}/rounds/00/features")
    assert manifest is not None
    features = FeatureShards.of(f"{folder}/rounds/00/features", manifest)
    checked = read_table(f"{folder}/ingest/train/verification.parquet")
    where = {"evidence": f"{folder}/rounds/00/evidence", "references": f"{folder}/rounds/00/references"}
    evidence, verified_N = verified_evidence(features, checked, detector, cosines=None, **where)
    np.testing.assert_array_equal(evidence.row_N, np.sort(checked["row"].to_numpy()))
    sources = Sources(features, where["references"], None, None, where["evidence"])
    pieces = [evidence_of_rows(shard, sources, evidence.row_N) for shard in features.shards]
    row_M = np.concatenate([piece.row_N for piece in pieces])
    for name in DETECTORS[detector].signals:
        signal_M = np.concatenate([piece.signal(name) for piece in pieces])
        np.testing.assert_array_equal(evidence.signal(name), signal_M[np.argsort(row_M)])
    error = class_fold_error(detector, evidence, verified_N, class_folds=2, seed=seed, delta=None)
    assert error is not None
    assert 0 <= error < 50
