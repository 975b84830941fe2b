"""Whole runs: what they skip and redo, and what does not change their results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_tables import STAGES, numbers_of, same_tables

from cleanscale import schema
from cleanscale.config import load
from cleanscale.storage.arrays import read_array

# ---- what is skipped and what is redone ------------------------------------------------------------------------------


def test_a_second_call_does_nothing_again(features_run, copy_run, finish, small_settings, feature_values, stages_done):
    folder = copy_run(features_run)
    before, files = stages_done(folder), set(folder.rglob("*.parquet"))
    again = finish(small_settings(folder, feature_values))
    assert stages_done(folder) == before
    assert set(folder.rglob("*.parquet")) == files
    assert not [line for line in again.said if "redone" in line]
    one, other = numbers_of(features_run.folder), numbers_of(folder)
    for part in ("detection", "calibration", "classification", "difference", "rejected"):
        assert one[part] == other[part]
    for stage in ("features", "cleannet", "evidence", "classifier"):  # what was complete keeps the time that it took
        assert one["seconds"][stage] == other["seconds"][stage] > 0


@pytest.mark.parametrize(
    ("changed", "said", "redone"),
    [
        (
            {"treatment": {"name": "hard"}},
            "rounds/00/relevance: redone because treatment.name was 'probability' and is 'hard'",
            {"00/relevance", "01/classifier", "01/classifier_test_predictions"},
        ),
        (
            {"detector": {"delta": 0.5}},
            "rounds/00/relevance: redone because detector.delta was None and is 0.5",
            {"00/relevance", "01/classifier", "01/classifier_test_predictions"},
        ),
        (
            {"cleannet": {"steps": 9}},
            "rounds/00/cleannet: redone because cleannet.steps was 8 and is 9",
            {"00/cleannet", "00/class_index", "00/relevance", "01/classifier", "01/classifier_test_predictions"},
        ),
        (
            {"references": {"iterations": 3}},
            "rounds/00/references: redone because references.iterations was 10 and is 3",
            {
                "00/references", "00/cleannet", "00/class_index", "00/evidence", "00/relevance", "01/classifier",
                "01/classifier_test_predictions",
            },
        ),
        ({"evaluate": {"resamples": 30}}, None, set()),
        ({"engine": {"feature_actors": 2, "max_failures": 1}}, None, set()),
    ],
)  # fmt: skip
def test_a_changed_setting_redoes_what_depends_on_it_and_nothing_else(
    features_run, copy_run, finish, small_settings, feature_values, stages_done, train_here, changed, said, redone
):
    folder = copy_run(features_run)
    before = stages_done(folder)
    again = finish(small_settings(folder, feature_values, changed))
    after = stages_done(folder)
    assert {stage for stage in after if after[stage] != before.get(stage)} == {f"rounds/{one}" for one in redone}
    assert set(after) == set(before)
    assert [line for line in again.said if line == said] == ([said] if said else [])
    if not said:
        assert not [line for line in again.said if "redone" in line]


def test_a_run_without_true_labels_and_one_with_them_train_alike(
    features_run, copy_run, finish, small_settings, feature_values, stages_done
):
    folder = copy_run(features_run)
    before = stages_done(folder)
    again = finish(small_settings(folder, feature_values, {"data": {"true_label": None}}))
    assert "detection" not in numbers_of(folder)
    after = stages_done(folder)
    assert {stage for stage in after if after[stage] != before[stage]} == {"ingest/train"}
    said = "ingest/train: redone because data.true_label was 'true_label' and is None"
    assert [line for line in again.said if "redone" in line] == [said]


def test_a_clean_set_adds_a_last_fine_tuning_and_redoes_nothing(
    features_run, copy_run, finish, small_settings, feature_values, feature_data, stages_done, train_here
):
    folder = copy_run(features_run)
    before = stages_done(folder)
    finish(small_settings(folder, feature_values, {"data": {"clean": str(feature_data / "clean.parquet")}}))
    after = stages_done(folder)
    assert {stage: after[stage] for stage in before} == before
    classification = numbers_of(folder)["classification"]
    assert list(classification) == ["round_0", "round_1", "fine_tuned_on_clean"]
    assert classification["fine_tuned_on_clean"]["top1"]["n"] == 80


def test_cleannet_as_published_is_reported_beside_when_it_is_asked_for(
    features_run, copy_run, finish, small_settings, feature_values, stages_done, train_here, by_row
):
    folder = copy_run(features_run)
    before = stages_done(folder)
    finish(small_settings(folder, feature_values, {"detector": {"published_steps": 4}}))
    after = stages_done(folder)
    assert set(after) - set(before) == {"rounds/00/cleannet_published"}
    assert "rounds/00/cleannet" not in {stage for stage in before if before[stage] != after[stage]}
    assert numbers_of(folder)["detection"]["cleannet_published"]["auroc"]["value"] is not None
    # It is reported; the product is that of the run's own detector.
    assert by_row(folder / "relevance").equals(by_row(features_run.folder / "relevance"))


# ---- what changes no result ------------------------------------------------------------------------------------------


def test_true_labels_reach_nothing_but_the_metrics(
    features_run, finish, small_settings, feature_values, make_features, tmp_path, train_here, by_row
):
    """The same data with its true labels shuffled, from the start."""
    table = make_features()
    shuffled = pa.array(np.random.default_rng(1).permutation(table["true_label"].to_numpy()))
    table = table.set_column(table.schema.get_field_index("true_label"), "true_label", shuffled)
    pq.write_table(table, tmp_path / "train.parquet")
    data = {"data": {"train": str(tmp_path / "train.parquet")}}
    folder = finish(small_settings(tmp_path / "run", feature_values, data)).folder
    same_tables(features_run.folder, folder, by_row)
    for name in ("references/classes-000000000.parquet", "relevance/weights.npy"):
        assert (folder / "rounds/00" / name).read_bytes() == (features_run.folder / "rounds/00" / name).read_bytes()
    for name in ("rounds/00/classifier/head.safetensors", "rounds/01/classifier/head.safetensors"):
        assert (folder / name).read_bytes() == (features_run.folder / name).read_bytes()
    one, other = numbers_of(features_run.folder), numbers_of(folder)
    assert one["detection"] != other["detection"]
    assert one["classification"] == other["classification"]


@pytest.fixture
def sharded(finish, small_settings, feature_values, tmp_path, train_here):
    """The run on features with shards of 1 KiB: classes alone, large ones in several parts."""
    return finish(small_settings(tmp_path / "sharded", feature_values, {"features": {"shard_bytes": 1024}})).folder


def test_the_number_of_shards_changes_no_result(features_run, sharded, by_row):
    assert len(list((features_run.folder / "rounds/00/features").glob("shard-*.parquet"))) == 1
    shards = json.loads((sharded / "rounds/00/features/manifest.json").read_text())["shards"]
    assert len(shards) >= 7
    assert max(shard["parts"] for shard in shards) > 1
    references = [
        pa.concat_tables([pq.read_table(f) for f in sorted((run / "rounds/00/references").glob("*.parquet"))])
        for run in (features_run.folder, sharded)
    ]
    assert references[0].equals(references[1])
    same_tables(features_run.folder, sharded, by_row, stages=("features",))
    same_tables(features_run.folder, sharded, by_row, stages=("evidence", "relevance"), rtol=1e-4, atol=1e-5)


# ---- kinds of runs ---------------------------------------------------------------------------------------------------


def test_a_second_round_goes_on_from_the_first_and_a_third_leaves_the_backbone_as_it_is(
    glyphs_run, glyphs_toml, copy_run, finish, stages_done, train_here, by_row
):
    folder = copy_run(glyphs_run)
    before = stages_done(folder)
    finish(load(["--config", str(glyphs_toml), "--run.uri", str(folder), "--run.rounds", "2"]))
    after = stages_done(folder)
    assert {stage: after[stage] for stage in before} == before
    for stage in STAGES:
        assert f"rounds/01/{stage}" in after
    assert "rounds/02/classifier" in after
    assert list(numbers_of(folder)["classification"]) == ["round_0", "round_1", "round_2"]
    assert by_row(folder / "relevance").equals(by_row(folder / "rounds/01/relevance"))
    backbones = [_tensors(folder / f"rounds/{k:02d}/classifier/model.safetensors", "backbone.") for k in (0, 1, 2)]
    assert any((backbones[0][name] != value).any() for name, value in backbones[1].items())
    assert all((backbones[1][name] == value).all() for name, value in backbones[2].items())
    heads = [_tensors(folder / f"rounds/{k:02d}/classifier/model.safetensors", "head.") for k in (1, 2)]
    assert heads[0]
    assert set(heads[0]) != set(heads[1]) or any((heads[0][name] != heads[1][name]).any() for name in heads[0])


def _tensors(file: Path, prefix: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: value for name, value in load_file(file).items() if name.startswith(prefix)}


def test_a_frozen_backbone_stays_as_it_was_loaded(glyphs_run, glyphs_toml, finish, tmp_path, stages_done, train_here):
    folder = tmp_path / "frozen"
    folder.mkdir()
    for part in ("glyphs", "ingest"):
        shutil.copytree(glyphs_run.folder / part, folder / part)
    arguments = ["--run.uri", str(folder), "--backbone.frozen", "--evaluate.figures", "false"]
    finish(load(["--config", str(glyphs_toml), *arguments]))
    assert {"rounds/00/backbone", "rounds/00/features", "rounds/01/classifier"} <= set(stages_done(folder))
    loaded = _tensors(folder / "rounds/00/backbone/model.safetensors", "backbone.")
    for number in (0, 1):
        trained = _tensors(folder / f"rounds/{number:02d}/classifier/model.safetensors", "backbone.")
        assert all((loaded[name] == value).all() for name, value in trained.items())
    assert set(numbers_of(folder)["classification"]) == {"round_0", "round_1"}


def test_copies_of_the_images_give_the_same_rows_and_a_close_result(
    glyphs_run, glyphs_toml, finish, tmp_path, train_here, by_row
):
    """Copies as large as the originals, so that nothing is lost but what encoding loses."""
    folder = tmp_path / "cached"
    folder.mkdir()
    for part in ("glyphs", "ingest"):
        shutil.copytree(glyphs_run.folder / part, folder / part)
    arguments = ["--run.uri", str(folder), "--data.cache_size", "16", "--evaluate.figures", "false"]
    finish(load(["--config", str(glyphs_toml), *arguments]))
    one, other = by_row(glyphs_run.folder / "relevance"), by_row(folder / "relevance")
    for column in ("row", "id", "label", "verified"):
        assert one[column].equals(other[column])
    copies = pa.concat_tables([pq.read_table(f) for f in sorted((folder / "cache/train/images").glob("*.parquet"))])
    assert copies.num_rows == 320
    assert np.corrcoef(one["probability_correct"], other["probability_correct"])[0, 1] > 0.5


def test_images_that_cannot_be_read_are_rejected_with_a_reason_and_weigh_nothing(
    glyphs_run, finish, small_settings, tmp_path, train_here, by_row
):
    images = pq.read_table(next((glyphs_run.folder / "glyphs/train").glob("*.parquet")))
    content = images["image"].to_pylist()
    content[3], content[40], content[41] = b"no picture", content[40][:30], None
    images = images.set_column(images.schema.get_field_index("image"), "image", pa.array(content, pa.binary()))
    pq.write_table(images, tmp_path / "broken.parquet")
    data = {
        "train": str(tmp_path / "broken.parquet"),
        "verification": str(glyphs_run.folder / "glyphs/verification.parquet"),
    }
    folder = finish(small_settings(tmp_path / "run", {"data": data, "classifier": {"epochs": 1}})).folder
    table = by_row(folder / "relevance")
    assert table.num_rows == 317
    assert not {3, 40, 41} & set(table["row"].to_pylist())
    rejected = pq.read_table(folder / "rejected.parquet")
    assert rejected.schema.equals(schema.REJECTED)
    reasons = dict(zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    assert set(reasons) == {images["id"][row].as_py() for row in (3, 40, 41)}
    assert all(reason for reason in reasons.values())
    assert sum(numbers_of(folder)["rejected"].values()) == 3
    weight_R = read_array(str(folder / "rounds/00/relevance/weights.npy"))
    assert weight_R.shape == (320,)
    assert (weight_R[[3, 40, 41]] == 0).all()
    assert "classification" not in numbers_of(folder)
    assert "detection" not in numbers_of(folder)


def test_nothing_verified_and_no_test_set_still_give_a_relevance_table(
    finish, small_settings, feature_data, tmp_path, train_here, by_row
):
    data = {"train": str(feature_data / "train.parquet"), "true_label": "true_label"}
    folder = finish(small_settings(tmp_path / "run", {"data": data})).folder
    table = by_row(folder / "relevance")
    assert table.num_rows == 320
    assert set(table["verified"].to_pylist()) == {-1}
    assert np.isfinite(table["probability_correct"]).all()
    numbers = numbers_of(folder)
    assert "classification" not in numbers
    assert numbers["detection"]["transfer"]["error_pooled"]["n"] == 320


def test_features_as_tsv_give_what_the_same_features_as_parquet_give(
    features_run, finish, small_settings, make_features, tmp_path, train_here, by_row
):
    """Ids, labels, verification labels and features of the run on Parquet, as lines of CleanNet's TSV."""
    with (tmp_path / "train.tsv").open("w") as file:
        for one in make_features().to_pylist():
            numbers = ",".join(repr(float(np.float32(x))) for x in one["feature"])
            file.write(f"{one['id']}\t\t{one['label']}\t{one['verified']}\t{numbers}\n")
    settings = small_settings(
        tmp_path / "run", {"data": {"train": str(tmp_path / "train.tsv"), "verified": "verified"}}
    )
    folder = finish(settings).folder
    one, other = by_row(features_run.folder / "relevance"), by_row(folder / "relevance")
    assert one.equals(other)


@pytest.fixture
def on_s3(feature_data, s3_environment, monkeypatch, tmp_path):
    """Put the data on the S3 server; (settings to read it there, a function that fetches a run folder from there)."""
    import fsspec

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    endpoint = {"endpoint_url": s3_environment["AWS_ENDPOINT_URL"]}
    store = fsspec.filesystem("s3", client_kwargs=endpoint, use_listings_cache=False, skip_instance_cache=True)
    for name in ("train", "test"):
        store.put_file(str(feature_data / f"{name}.parquet"), f"runs-bucket/data/{name}.parquet")

    def fetch(uri: str) -> Path:
        store.get(f"{uri.removeprefix('s3://')}/", str(tmp_path / "fetched"), recursive=True)
        return tmp_path / "fetched"

    train, test = "s3://runs-bucket/data/train.parquet", "s3://runs-bucket/data/test.parquet"
    return {"data": {"train": train, "test": test, "verified": "verified", "true_label": "true_label"}}, fetch


@pytest.mark.slow
def test_two_training_workers_on_s3_end_with_the_same_references(features_run, finish, small_settings, on_s3, by_row):
    """Real worker groups, whose checkpoints lie on S3 too: slow."""
    values, fetch = on_s3
    finish(small_settings("s3://runs-bucket/runs/two", values, {"engine": {"num_workers": 2}}))
    folder = fetch("s3://runs-bucket/runs/two")
    same_tables(features_run.folder, folder, by_row, stages=("features",))
    name = "rounds/00/references/classes-000000000.parquet"
    assert (folder / name).read_bytes() == (features_run.folder / name).read_bytes()
    # What SGD makes agrees in kind, not to the bit.
    one, other = (numbers_of(run)["detection"]["transfer"]["auroc"]["value"] for run in (features_run.folder, folder))
    assert abs(one - other) < 0.15
