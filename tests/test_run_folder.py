"""The folder that a whole run leaves: the files, tables and numbers of the contract."""

import json
import math
import tomllib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_tables import STAGES, numbers_of

from cleanscale import schema
from cleanscale.config import load


def measured(nested, path=()):
    """(path, measured number) of everything in a part of metrics.json that has a value and an interval."""
    for name, inner in nested.items():
        if isinstance(inner, dict) and {"value", "low", "high", "n"} <= set(inner):
            yield (*path, name), inner
        if isinstance(inner, dict):
            yield from measured(inner, (*path, name))


def test_the_run_folder_has_what_the_contract_lists(glyphs_run):
    folder = glyphs_run.folder
    for name in ("settings.toml", "metrics.json", "rejected.parquet"):
        assert (folder / name).is_file(), name
    for stage in STAGES:
        assert (folder / "rounds" / "00" / stage / "manifest.json").is_file(), stage
    assert (folder / "rounds" / "01" / "classifier" / "manifest.json").is_file()
    assert not (folder / "rounds" / "01" / "features").exists()
    assert list((folder / "relevance").glob("*.parquet"))


def test_the_manifest_is_the_last_thing_that_a_stage_writes(glyphs_run, features_run):
    for folder in (glyphs_run.folder, features_run.folder):
        for manifest in folder.rglob("manifest.json"):
            written = manifest.stat().st_mtime_ns
            inner = {p.parent for p in manifest.parent.rglob("manifest.json")} - {manifest.parent}
            for file in manifest.parent.rglob("*"):
                if file.is_file() and not any(below in file.parents for below in inner):
                    assert file.stat().st_mtime_ns <= written, file


def test_manifests_name_inputs_settings_shards_and_rows(glyphs_run):
    manifest = json.loads((glyphs_run.folder / "rounds" / "00" / "features" / "manifest.json").read_text())
    assert set(manifest["key"]["inputs"]) == {"ingest", "classifier"}
    assert manifest["key"]["settings"]["features"]["shard_bytes"] > 0
    assert sum(shard["rows"] for shard in manifest["shards"]) == 320
    assert all(
        shard["bytes"] > 0 and (glyphs_run.folder / "rounds/00/features" / shard["file"]).is_file()
        for shard in manifest["shards"]
    )


def test_every_image_is_once_in_the_relevance_table(glyphs_run, by_row):
    table = by_row(glyphs_run.folder / "relevance")
    assert table.schema.equals(schema.RELEVANCE)
    assert table["row"].to_pylist() == list(range(320))
    assert len(set(table["id"].to_pylist())) == 320
    assert table.equals(by_row(glyphs_run.folder / "rounds" / "00" / "relevance"))
    for column in ("relevance", "probability_correct", "weight"):
        assert np.isfinite(table[column]).all()
    relevance_N, probability_N = table["relevance"].to_numpy(), table["probability_correct"].to_numpy()
    assert ((relevance_N >= -1) & (relevance_N <= 1) & (probability_N >= 0) & (probability_N <= 1)).all()
    assert set(table["verified"].to_pylist()) == {-1, 0, 1}
    assert (table["verified"].to_numpy() != -1).sum() == 4 * 15


def test_ids_and_labels_are_those_of_the_input(glyphs_run, by_row):
    drawn = pa.concat_tables([pq.read_table(f) for f in sorted((glyphs_run.folder / "glyphs/train").glob("*.parquet"))])
    table = by_row(glyphs_run.folder / "relevance")
    assert table["id"].to_pylist() == drawn["id"].to_pylist()
    names = tomllib.loads((glyphs_run.folder / "settings.toml").read_text())["classes"]["names"]
    assert [names[label] for label in table["label"].to_pylist()] == drawn["label"].to_pylist()


def test_metrics_are_nested_with_intervals_and_numbers_of_images_and_without_nan(glyphs_run):
    numbers = numbers_of(glyphs_run.folder)
    assert set(numbers) >= {
        "detection", "calibration", "classification", "seconds", "images_per_second", "peak_memory_bytes",
        "rejected", "versions",
    }  # fmt: skip
    transfer = numbers["detection"]["transfer"]
    assert set(transfer) == {"error_per_class", "error_pooled", "auroc", "average_precision"}
    assert {"held_out_classes", "verified_classes"} <= set(transfer["error_per_class"])
    assert {
        "cleannet",
        "naive",
        "classification_filtering",
        "average",
        "self_confidence",
        "prediction_disagrees",
    } <= set(numbers["detection"])
    assert set(numbers["classification"]) == {"round_0", "round_1"}
    found = list(measured({k: numbers[k] for k in ("detection", "calibration", "classification", "difference")}))
    assert len(found) > 30
    for path, one in found:
        if one["value"] is not None:
            assert one["low"] <= one["value"] <= one["high"], path
            assert one["n"] > 0, path
            assert all(math.isfinite(one[name]) for name in ("value", "low", "high")), path
    # 320 images less the 60 that somebody verified; 8 classes of 6 test images.
    assert transfer["error_pooled"]["n"] == 260
    assert numbers["classification"]["round_0"]["top1"]["n"] == 48
    assert numbers["peak_memory_bytes"]["all_processes_pss"] > numbers["peak_memory_bytes"]["driver"] > 0
    assert numbers["seconds"]["total"] > 0
    assert numbers["images_per_second"]["features"] > 0


def test_errors_are_in_percent_and_areas_in_0_to_1(glyphs_run):
    numbers = numbers_of(glyphs_run.folder)["detection"]
    # Calling no label wrong errs on every wrong one: about 30 %.
    assert 15 < numbers["naive"]["error_pooled"]["value"] < 85
    assert 0 <= numbers["transfer"]["auroc"]["value"] <= 1


def test_tables_say_it_class_by_class_and_row_by_row(glyphs_run, by_row):
    table = by_row(glyphs_run.folder / "relevance")
    classes = pq.read_table(glyphs_run.folder / "per_class.parquet")
    names = tomllib.loads((glyphs_run.folder / "settings.toml").read_text())["classes"]["names"]
    assert classes["name"].to_pylist() == names
    assert sum(classes["images"].to_pylist()) == table.num_rows
    assert sum(classes["called_wrong"].to_pylist()) == sum(table["mislabeled"].to_pylist())
    assert sum(classes["verified"].to_pylist()) == 4 * 15
    assert sum(classes["evaluated"].to_pylist()) == 260
    pooled = numbers_of(glyphs_run.folder)["detection"]["transfer"]["error_pooled"]["value"]
    errors = np.array(classes["error"].to_pylist()) * np.array(classes["evaluated"].to_pylist()) / 260
    assert errors.sum() == pytest.approx(pooled)
    surest = pq.read_table(glyphs_run.folder / "most_surely_wrong.parquet")
    found = table.filter(pa.array(table["mislabeled"].to_numpy() & (table["verified"].to_numpy() == -1)))
    assert sorted(surest["row"].to_pylist()) == sorted(found["row"].to_pylist())
    assert surest["probability_correct"].to_pylist() == sorted(found["probability_correct"].to_pylist())


def test_figures_are_pngs(glyphs_run):
    from PIL import Image

    figures = {file.name: file for file in (glyphs_run.folder / "figures").iterdir()}
    assert set(figures) >= {
        "roc.png", "precision_recall.png", "reliability.png", "error_per_class.png", "most_surely_wrong.png",
        "accuracy_by_round.png",
    }  # fmt: skip
    for file in figures.values():
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 50


def test_written_settings_are_those_of_the_run(glyphs_run):
    again = load(["--config", str(glyphs_run.folder / "settings.toml")])
    before, after = glyphs_run.settings, again
    assert after.cleannet == before.cleannet.resolved()
    assert after.model_copy(update={"cleannet": before.cleannet}) == before


def test_a_run_on_features_needs_no_backbone(features_run):
    folder = features_run.folder
    assert (folder / "rounds/00/classifier/head.safetensors").is_file()
    assert not (folder / "rounds/00/classifier/model.safetensors").exists()
    numbers = numbers_of(folder)
    assert set(numbers["classification"]) == {"round_0", "round_1"}
    assert numbers["detection"]["transfer"]["auroc"]["value"] > 0.6  # it works, on easy data
