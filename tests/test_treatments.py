"""Treatments on the command line: one small run, then its last classifier again under each name."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cleanscale import schema
from cleanscale.storage.arrays import read_array
from cleanscale.storage.manifests import read_manifest
from cleanscale.storage.tables import read_table

TINY = Path(__file__).parent.parent / "examples" / "tiny.toml"
QUICK = [
    "--glyphs.train_per_class", "30", "--glyphs.test_per_class", "4", "--glyphs.size", "16",
    "--backbone.image_size", "16", "--classifier.epochs", "2", "--classifier.finetune_epochs", "1",
    "--heads.epochs", "2", "--heads.hidden_width", "16", "--cleannet.steps", "5", "--cleannet.start_steps", "5",
    "--cleannet.class_folds", "2", "--evidence.class_folds", "2", "--evaluate.figures", "false",
    "--evaluate.resamples", "20", "--engine.num_cpus", "2", "--tracking.enabled", "false",
]  # fmt: skip
NOISE = ("forward", "backward", "bottom_up", "noise_em")
NEW = ("relabel", "instance_forward", *NOISE, "label_cleaning")
LAST = Path("rounds/01/classifier/model.safetensors")


@pytest.fixture(scope="module")
def tiny(call_main, in_this_process, tmp_path_factory):
    """tiny(treatment, ...) -> (run folder, what was logged): everything before the treatment is done once."""
    folder = tmp_path_factory.mktemp("tiny") / "run"

    def do(treatment: str, *more: str) -> tuple[Path, list[str]]:
        with in_this_process():
            arguments = ["--config", str(TINY), "--run.uri", str(folder), *QUICK, "--treatment.name", treatment, *more]
            status, said = call_main(arguments)
        assert status == 0, said
        return folder, said

    return do


@pytest.fixture(scope="module")
def weighted(tiny) -> tuple[bytes, dict[str, int]]:
    """(the last classifier, when the stages of round 0 were done) of the run with `probability`."""
    folder, _ = tiny("probability")
    return (folder / LAST).read_bytes(), times(folder)


def times(folder: Path) -> dict[str, int]:
    files = [f for f in (folder / "rounds/00").rglob("manifest.json") if f.parent.name != "relevance"]
    return {str(file): file.stat().st_mtime_ns for file in files}


def relabelled_images_have_the_suggested_label_and_the_table_is_as_it_was(folder: Path) -> None:
    table = pq.read_table(sorted((folder / "relevance").glob("*.parquet"))).sort_by("row")
    target_R = read_array(str(folder / "rounds/01/supervision/targets.npy"))
    weight_R = read_array(str(folder / "rounds/01/supervision/weights.npy"))
    label_N, wrong_N = table["label"].to_numpy(), table["mislabeled"].to_numpy()
    unseen_N = table["verified"].to_numpy() == schema.UNSEEN
    suggested_N = table["suggested_label"].fill_null(-1).to_numpy()
    np.testing.assert_array_equal(target_R[unseen_N & wrong_N], suggested_N[unseen_N & wrong_N])
    np.testing.assert_array_equal(target_R[~wrong_N], label_N[~wrong_N])
    named = read_table(str(folder / "ingest/train/verification.parquet"))
    np.testing.assert_array_equal(target_R[named["row"]], named["verified_label"])  # glyphs' verification names them
    assert (weight_R[named["row"]] == 1).all()
    assert ((weight_R >= 0) & (weight_R <= 1)).all()


def the_matrix_has_a_row_for_every_true_class(folder: Path) -> None:
    matrix_CC = read_array(str(folder / "rounds/01/supervision/observed_given_true.npy"))
    assert matrix_CC.shape == (20, 20)
    np.testing.assert_allclose(matrix_CC.sum(axis=1), 1, rtol=1e-5)
    assert (matrix_CC >= 0).all()
    known_R = read_array(str(folder / "rounds/01/supervision/known.npy"))
    assert (known_R >= 0).sum() == 9 * 20


def the_matrix_and_the_odds_of_each_image_are_those_of_the_judgement(folder: Path) -> None:
    the_matrix_has_a_row_for_every_true_class(folder)
    matrix_CC = read_array(str(folder / "rounds/01/supervision/observed_given_true.npy"))
    table = pq.read_table(sorted((folder / "relevance").glob("*.parquet"))).sort_by("row")
    label_N, probability_N = table["label"].to_numpy(), table["probability_correct"].to_numpy().astype(np.float64)
    odds_R = read_array(str(folder / "rounds/01/supervision/log_odds.npy"))
    for label in range(20):
        own_N = label_N == label
        sure_N = np.clip(probability_N[own_N], 0.01, 0.99)
        mean = np.clip(probability_N[own_N].mean(), 0.01, 0.99)
        np.testing.assert_allclose(odds_R[own_N], np.log(sure_N / (1 - sure_N)) - np.log(mean / (1 - mean)), atol=1e-4)
    assert np.trace(matrix_CC) / 20 == pytest.approx(probability_N.mean(), abs=0.1)


def every_image_has_a_noise_type_and_likely_true_classes(folder: Path) -> None:
    table = pq.read_table(sorted((folder / "rounds/01/noise_types").glob("*.parquet"))).sort_by("row")
    assert table.schema.equals(schema.NOISE_TYPES)
    assert table["row"].to_pylist() == list(range(20 * 30))
    for kind in ("p", "posterior"):
        columns = [table[f"{kind}_{name}"].to_numpy() for name in ("noise_free", "pointless", "confusing")]
        np.testing.assert_allclose(sum(columns), 1, atol=1e-4)
        assert min(column.min() for column in columns) >= 0
    probability_NK = np.array(table["posterior_probability"].to_pylist())
    assert (np.diff(probability_NK, axis=1) <= 0).all()
    assert (np.array(table["posterior_label"].to_pylist()) < 20).all()
    confusion = read_table(str(folder / "rounds/01/supervision/confusion.parquet"))
    assert (confusion["true"].to_numpy() != confusion["observed"].to_numpy()).all()
    notes = read_manifest(str(folder / "rounds/01/supervision")).notes
    assert notes["right"] + notes["wrong_named"] == 9 * 20
    assert notes["repeats"] == round(0.5 * 600 / 180)


def every_image_has_cleaned_labels_and_verdicts_stand_in_them(folder: Path) -> None:
    table = pq.read_table(sorted((folder / "labels").glob("*.parquet"))).sort_by([("row", "ascending")])
    assert table.schema.equals(schema.CLEANED)
    noisy_E, verified_E, cleaned_E = (table[name].to_numpy() for name in ("noisy", "verified", "cleaned"))
    assert table["row"].to_numpy()[noisy_E == 1].tolist() == list(range(20 * 30))  # one label per image
    seen_E = verified_E != schema.UNSEEN
    assert seen_E[noisy_E == 1].sum() == 9 * 20
    np.testing.assert_array_equal(cleaned_E[seen_E], verified_E[seen_E])
    assert ((cleaned_E >= 0) & (cleaned_E <= 1)).all()
    for name in ("noisy", "clean", "mixed"):
        assert (folder / "rounds/01/classifier" / name / "head.safetensors").is_file()


LEFT_BY = {
    "label_cleaning": every_image_has_cleaned_labels_and_verdicts_stand_in_them,
    "relabel": relabelled_images_have_the_suggested_label_and_the_table_is_as_it_was,
    "instance_forward": the_matrix_and_the_odds_of_each_image_are_those_of_the_judgement,
    "forward": the_matrix_has_a_row_for_every_true_class,
    "backward": the_matrix_has_a_row_for_every_true_class,
    "bottom_up": the_matrix_has_a_row_for_every_true_class,
    "noise_em": every_image_has_a_noise_type_and_likely_true_classes,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_every_treatment_runs_leaves_what_it_used_and_redoes_only_what_depends_on_it(tiny, weighted, name):
    """Slow: trains a classifier on images for each treatment."""
    folder, _ = tiny(name)
    assert times(folder) == weighted[1]
    assert (folder / LAST).read_bytes() != weighted[0]
    top1 = json.loads((folder / "metrics.json").read_text())["classification"]["round_1"]["top1"]
    assert top1["n"] == 20 * 4
    assert 0 <= top1["low"] <= top1["value"] <= top1["high"] <= 100
    LEFT_BY[name](folder)


@pytest.mark.slow
def test_the_default_treatment_is_the_same_bits_after_all_others(tiny, weighted):
    """Slow: needs a run."""
    folder, _ = tiny("probability")
    assert (folder / LAST).read_bytes() == weighted[0]


@pytest.mark.slow
def test_cleaned_labels_and_then_clean_images_train_one_network_behind_its_projection(
    call_main, in_this_process, tmp_path
):
    """Slow: trains classifiers."""
    more = ["--glyphs.clean_per_class", "3", "--features.dimensions", "32", "--treatment.name", "label_cleaning"]
    with in_this_process():
        status, said = call_main(["--config", str(TINY), "--run.uri", str(tmp_path / "run"), *QUICK, *more])
    assert status == 0, said
    classification = json.loads((tmp_path / "run/metrics.json").read_text())["classification"]
    assert list(classification) == ["round_0", "round_1", "fine_tuned_on_clean"]
    assert classification["fine_tuned_on_clean"]["top1"]["n"] == 20 * 4


@pytest.fixture(scope="module")
def on_features(call_main, in_this_process, small_values, feature_values, tmp_path_factory):
    """on_features(treatment, ...) -> (exit status, run folder, what was logged): a run on features, with verdicts that
    name no true class."""
    import tomli_w

    root = tmp_path_factory.mktemp("on_features")
    (root / "run.toml").write_text(tomli_w.dumps(small_values(root / "run", feature_values)))

    def do(treatment: str, *more: str) -> tuple[int, Path, list[str]]:
        with in_this_process():
            status, said = call_main(["--config", str(root / "run.toml"), "--treatment.name", treatment, *more])
        return status, root / "run", said

    return do


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_every_treatment_runs_on_features_with_right_and_wrong_alone(on_features, name):
    """Slow: trains a classifier for each treatment."""
    status, folder, said = on_features(name)
    assert status == 0, said
    assert (folder / "rounds/01/classifier/head.safetensors").is_file()
    if name in NOISE:
        assert any("verified_label" in line for line in said), said  # what is missing, and where it would stand
    if name == "noise_em":
        table = pq.read_table(sorted((folder / "rounds/01/noise_types").glob("*.parquet")))
        assert table.num_rows == 320
        assert table["posterior_confusing"].to_numpy().max() > 0  # nobody named a class: what is judged says which


@pytest.mark.slow
def test_too_many_classes_for_a_matrix_are_the_users_error(on_features, capsys):
    """Slow: starts a run."""
    status, _, _ = on_features("forward", "--treatment.matrix_classes", "7")
    assert status != 0
    told = " ".join(capsys.readouterr().err.split())
    assert "8 classes" in told
    assert "at most 7" in told
    assert "noise_em" in told
