"""Registered models answer as the job that made them, and to what they do not know with a reason."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.maths.detection_metrics import auroc


@pytest.fixture(scope="session")
def load(registered, store):
    """load("small-classifier"): the champion, by mlflow.pyfunc."""
    assert store.client
    return lambda model: mlflow.pyfunc.load_model(f"models:/{model}@champion")


def test_the_classifier_predicts_what_the_training_job_predicted(load, unseen_images, own_predictions):
    found = load("small-classifier").predict(pd.DataFrame({"image": unseen_images["image"].to_pylist()}))
    own_NK = own_predictions("small")
    np.testing.assert_array_equal(np.array(found["top_labels"].tolist()), own_NK)
    assert found["label"].tolist() == own_NK[:, 0].tolist()
    assert found["error"].isna().all()


def test_probabilities_are_those_of_the_network(load, registered, unseen_images):
    import torch

    from cleanscale.stages import classifier as stage
    from cleanscale.stages.feature_shards import Features

    folder = registered / "small" / "rounds" / "01"
    (file,) = (folder / "classifier_test_features").glob("shard-*.parquet")
    model = stage.load(str(folder / "classifier")).eval()
    features = Features.of_table(pq.read_table(file), model.backbone.width)
    with torch.inference_mode():
        probability_NC = model.head(torch.from_numpy(features.feature_ND.astype(np.float32))).softmax(1).numpy()
    found = load("small-classifier").predict(pd.DataFrame({"image": unseen_images["image"].to_pylist()}))
    want_N = probability_NC.max(axis=1)[np.argsort(features.row_N)]
    np.testing.assert_allclose(found["probability"].to_numpy(float), want_N, rtol=0, atol=2e-3)  # features are float16


def test_classes_are_named_and_their_number_is_asked_for(load, registered, unseen_images):
    names = tomllib.loads((registered / "small" / "settings.toml").read_text())["classes"]["names"]
    frame = pd.DataFrame({"image": unseen_images["image"].to_pylist()[:3]})
    for asked, given in ((1, 1), (2, 2), (100, 8)):
        found = load("small-classifier").predict(frame, params={"top_k": asked})
        for _, row in found.iterrows():
            assert len(row["top_labels"]) == given
            assert row["top_classes"] == [names[label] for label in row["top_labels"]]
            assert row["class_name"] == row["top_classes"][0]
            assert row["top_probabilities"] == sorted(row["top_probabilities"], reverse=True)
            assert given < 8 or sum(row["top_probabilities"]) == pytest.approx(1, abs=1e-5)


def test_one_answer_does_not_depend_on_what_else_is_asked(load, unseen_images):
    images = unseen_images["image"].to_pylist()
    model = load("small-classifier")
    together = model.predict(pd.DataFrame({"image": images}))["probability"].to_numpy(float)
    alone = [model.predict(pd.DataFrame({"image": [image]}))["probability"][0] for image in images[:8]]
    np.testing.assert_allclose(alone, together[:8], atol=2e-3)


def test_an_image_that_cannot_be_read_is_a_row_with_a_reason(load, unseen_images, own_predictions):
    good = unseen_images["image"].to_pylist()[:2]
    found = load("small-classifier").predict(pd.DataFrame({"image": [good[0], b"no image", good[1]]}))
    assert found["error"].tolist() == [None, "unreadable image: not a known image format", None]
    assert found["label"].tolist() == [own_predictions("small")[0, 0], None, own_predictions("small")[1, 0]]
    assert found["top_labels"][1] == []


def test_a_run_on_features_makes_models_that_take_features(load, feature_data, own_predictions, by_row, registered):
    test = pq.read_table(feature_data / "test.parquet")
    model = load("features-classifier")
    assert model.metadata.signature.inputs.input_names() == ["feature"]
    found = model.predict(pd.DataFrame({"feature": test["feature"].to_pylist()}))
    np.testing.assert_array_equal(np.array(found["top_labels"].tolist()), own_predictions("features"))
    train = pq.read_table(feature_data / "train.parquet")
    frame = pd.DataFrame({"feature": train["feature"].to_pylist(), "label": train["label"].to_pylist()})
    found = load("features-detector").predict(frame)
    table = by_row(registered / "features" / "relevance")
    np.testing.assert_allclose(found["relevance"].to_numpy(float), table["relevance"].to_numpy(), atol=1e-6)
    short = load("features-classifier").predict(pd.DataFrame({"feature": [[1.0, 2.0]]}))
    assert short["error"][0] == "found a feature of 2 numbers; expected 16"


@pytest.fixture(scope="session")
def judged(load, train_images) -> pd.DataFrame:
    """What the registered detector says of the training images."""
    columns = {"image": train_images["image"].to_pylist(), "label": train_images["label"].to_pylist()}
    return load("small-detector").predict(pd.DataFrame(columns))


def test_relevance_of_training_images_is_that_of_the_relevance_table(judged, registered, by_row):
    table = by_row(registered / "small" / "relevance")
    np.testing.assert_allclose(judged["relevance"].to_numpy(float), table["relevance"].to_numpy(), rtol=0, atol=1e-6)


def test_probabilities_of_training_images_are_close_to_those_of_the_relevance_table(
    load, registered, feature_data, by_row
):
    # Not the same: here an image is scored by all out-of-fold heads, most of which were trained on it.
    table = by_row(registered / "features" / "relevance")
    unseen_N = table["verified"].to_numpy() == -1
    judged = load("features-detector").predict(feature_frame(pq.read_table(feature_data / "train.parquet")))
    here_N, there_N = judged["probability_correct"].to_numpy(float), table["probability_correct"].to_numpy()
    assert np.corrcoef(here_N[unseen_N], there_N[unseen_N])[0, 1] > 0.85
    assert np.abs(here_N - there_N)[unseen_N].mean() < 0.12


def test_wrong_labels_of_images_that_the_run_never_saw_are_found(load, make_features):
    new = make_features(seed=5)
    found = load("features-detector").predict(feature_frame(new))
    wrong_N = np.array(new["label"].to_pylist()) != np.array(new["true_label"].to_pylist())
    assert auroc(wrong_N, found["probability_correct"].to_numpy(float)) > 0.95
    assert (found["mislabeled"].to_numpy(bool) != wrong_N).mean() < 0.15  # 30 % are wrong


def feature_frame(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame({"feature": table["feature"].to_pylist(), "label": table["label"].to_pylist()})


def test_suggestions_come_with_labels_called_wrong_and_only_then(load, feature_data):
    judged = load("features-detector").predict(feature_frame(pq.read_table(feature_data / "train.parquet")))
    assert judged["mislabeled"].any()
    assert not judged["mislabeled"].all()
    for _, row in judged.iterrows():
        assert (row["suggested_label"] is not None) == row["mislabeled"]
        if row["mislabeled"]:
            assert row["suggested_class"] == str(row["suggested_label"])  # a class without a name
            assert -1 <= row["suggested_relevance"] <= 1


def test_a_label_may_be_a_name_or_a_number_and_one_that_is_none_has_a_reason(load, train_images, registered):
    names = tomllib.loads((registered / "small" / "settings.toml").read_text())["classes"]["names"]
    image = train_images["image"][0].as_py()
    model = load("small-detector")
    for frame in (["2", names[2]], [2, 2], [2.0, 2.0]):
        found = model.predict(pd.DataFrame({"image": [image, image], "label": frame}))
        assert found["error"].tolist() == [None, None]
        assert found["relevance"][0] == found["relevance"][1]
    found = model.predict(pd.DataFrame({"image": [image, b"", image], "label": ["no class", names[0], None]}))
    assert found["error"][0] == "the label 'no class' is none of the 8 classes of the run"
    assert found["error"][1].startswith("unreadable image")
    assert found["error"][2] == "no label"
    assert found["relevance"].tolist() == [None, None, None]


def test_models_hold_weights_and_tables_and_nothing_that_would_be_executed(registered, store):
    for model in ("small-classifier", "small-detector", "features-classifier", "features-detector"):
        assert store.client
        folder = mlflow.artifacts.download_artifacts(f"models:/{model}@champion")
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        kinds = {path.suffix for path in files if "code" not in path.relative_to(folder).parts}
        assert kinds <= {".safetensors", ".npy", ".parquet", ".json", ".toml", ".yaml", ".txt", ""}
        for path in files:
            assert path.suffix != ".npy" or np.load(path, allow_pickle=False) is not None
        assert json.loads((next(Path(folder).glob("data/*/model.json"))).read_text())["format"] == 1
