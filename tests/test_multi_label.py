"""Lists of labels on the command line: one small run on pictures, looked at from several sides; and on features."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from cleanscale import schema

VALUES = {
    "data": {"train": "glyphs"},
    "glyphs": {
        "classes": 10, "per_image": 3, "train_per_class": 24, "test_per_class": 10, "size": 16, "verified_images": 30,
    },
    "treatment": {"name": "label_cleaning"},
    "cleaning": {"epochs": 1, "batch": 40, "label_width": 8, "feature_width": 8, "hidden_width": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(call_main, in_this_process, small_values, tmp_path_factory):
    """run(name, values, *arguments) -> (exit status, run folder, what was logged)."""
    root = tmp_path_factory.mktemp("multi_label")

    def do(name: str, values: dict, *more: str) -> tuple[int, Path, list[str]]:
        (root / f"{name}.toml").write_text(tomli_w.dumps(small_values(root / name, values)))
        with in_this_process():
            status, said = call_main(["--config", str(root / f"{name}.toml"), *more])
        return status, root / name, said

    return do


@pytest.fixture(scope="module")
def pictures(run) -> Path:
    status, folder, said = run("pictures", VALUES)
    assert status == 0, said
    return folder


@pytest.mark.slow
def test_every_noisy_label_and_every_verdict_stands_in_the_cleaned_table(pictures):
    """Slow: trains classifiers."""
    table = pq.read_table(sorted((pictures / "labels").glob("*.parquet")))
    assert table.schema.equals(schema.CLEANED)
    pairs = set(zip(table["row"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert len(pairs) == table.num_rows
    edges = pq.read_table(pictures / "ingest/train/edges")
    noisy_E = table["noisy"].to_numpy() == 1
    assert (
        noisy_E.sum() == edges.num_rows == len(pairs & set(zip(*(c.to_pylist() for c in edges.columns), strict=True)))
    )
    verification = pq.read_table(pictures / "ingest/train/verification.parquet")
    seen_E = table["verified"].to_numpy() != schema.UNSEEN
    assert seen_E.sum() == verification.num_rows > 30
    cleaned_E = table["cleaned"].to_numpy()
    np.testing.assert_array_equal(cleaned_E[seen_E], table["verified"].to_numpy()[seen_E])
    assert (cleaned_E[~noisy_E & ~seen_E] >= 0.5).all()  # what cleaning adds


@pytest.mark.slow
def test_metrics_compare_every_classifier_with_noisy_labels_alone(pictures):
    """Slow: trains classifiers."""
    metrics = json.loads((pictures / "metrics.json").read_text())
    found = metrics["multi_label"]
    for measure in ("map", "ap_all"):
        assert list(found[measure]) == ["noisy", "clean", "mixed", "joint"]
        one = found[measure]["joint"]["all_classes"]
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
        assert one["n"] == 50
        assert len(found[measure]["joint"]["frequency"]) == 10
        assert found[measure]["joint"]["noise_rate"].keys() <= {"0_to_20", "20_to_40", "40_to_60", "60_to_80"}
        assert found["difference"]["joint"]["noisy"][measure]["all_classes"]["n"] == 50
    assert found["labels"].keys() == {"noisy", "cleaned"}
    assert metrics["rejected"] == {}


@pytest.mark.slow
def test_the_same_command_again_does_nothing_and_true_labels_change_metrics_alone(pictures, run, stages_done):
    """Slow: trains classifiers."""
    before = stages_done(pictures)
    status, folder, _ = run("pictures", VALUES, "--evaluate.resamples", "25")
    assert (status, stages_done(folder)) == (0, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--treatment.name", "probability"], "add --treatment.name label_cleaning"),
        (["--detector.name", "cleannet"], "the detector cleannet judges one label per image"),
        (["--detector.compare", "svm"], "the detector svm judges one label per image"),
        (["--run.rounds", "2"], "expected 1"),
    ],
)
def test_what_needs_one_label_per_image_is_the_users_error(pictures, run, capsys, arguments, told):
    """Slow: needs a run."""
    status, _, _ = run("pictures", VALUES, *arguments)
    assert status != 0
    assert told in " ".join(capsys.readouterr().err.split())


def multi_label_features(rows: int, seed: int, wrong: float) -> pa.Table:
    rng = np.random.default_rng([3, seed])
    centre_CD = np.random.default_rng(4).normal(size=(8, 16))
    true_NC = rng.random((rows, 8)) < 0.25
    true_NC[np.arange(rows), rng.integers(0, 8, rows)] = True
    noisy_NC = true_NC | (rng.random((rows, 8)) < wrong)
    feature_ND = (true_NC @ centre_CD + rng.normal(size=(rows, 16))).astype(np.float32)
    columns = {
        "id": [f"{seed}-{k}" for k in range(rows)],
        "label": pa.array([np.flatnonzero(hot).tolist() for hot in noisy_NC], pa.list_(pa.int64())),
        "true_label": pa.array([np.flatnonzero(hot).tolist() for hot in true_NC], pa.list_(pa.int64())),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.ravel()), 16),
    }
    return pa.table(columns)


@pytest.mark.slow
def test_features_with_lists_of_labels_are_cleaned_and_shuffled_truth_changes_no_table(run, tmp_path):
    """Slow: trains classifiers."""
    train, test = multi_label_features(600, 0, 0.15), multi_label_features(200, 1, 0.0)
    checked = [
        {"id": train["id"][k].as_py(), "label": str(label), "verified": int(label in train["true_label"][k].as_py())}
        for k in range(150)
        for label in sorted({*train["label"][k].as_py(), *train["true_label"][k].as_py()})
    ]
    pq.write_table(pa.Table.from_pylist(checked), tmp_path / "checked.parquet")
    pq.write_table(test, tmp_path / "test.parquet")
    places = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    data = places | {"verification": str(tmp_path / "checked.parquet"), "true_label": "true_label"}
    values = {
        "data": data, "treatment": {"name": "label_cleaning"}, "heads": {"epochs": 5, "hidden_width": 32},
        "cleaning": {"variant": "pretrained", "compare": [], "pretrain_steps": 250, "batch": 40, "epochs": 2},
    }  # fmt: skip
    tables, metrics = [], []
    order = np.random.default_rng(0).permutation(600)
    for name, truth in (("one", train["true_label"]), ("other", train["true_label"].take(order))):
        pq.write_table(train.set_column(2, "true_label", truth), tmp_path / "train.parquet")
        status, folder, said = run(name, values)
        assert status == 0, said
        tables.append(pq.read_table(sorted((folder / "labels").glob("*.parquet"))))
        metrics.append(json.loads((folder / "metrics.json").read_text())["multi_label"])
    assert tables[0].equals(tables[1])
    before, after = (metrics[0]["labels"][name]["false_per_image"]["value"] for name in ("noisy", "cleaned"))
    assert after < 0.7 * before
    assert metrics[0]["labels"] != metrics[1]["labels"]
    assert list(metrics[0]["map"]) == ["noisy", "pretrained"]
