"""`cleanscale verify-next`: a CSV to fill in, and what comes of it when it is filled in."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale import cli, schema, verify_next
from cleanscale.config import resolved_toml
from cleanscale.datasets.verification import read_verification
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import ConfigError
from cleanscale.reporting.progress import Progress
from cleanscale.stages import ingest
from cleanscale.stages.place import Place
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.shards import plan_shards


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_settings, feature_values):
    """What a run on `feature_data` leaves, as far as a plan reads it: judged by drawing lots."""
    settings = small_settings(tmp_path_factory.mktemp("runs") / "features", feature_values)
    place = Place(settings.run_uri, 0, EngineSettings(), Progress())
    with in_this_process(Here()):
        data = ingest.run(place, place.path("ingest", "train"), settings.data.train, settings.data)
    table = pa.concat_tables([pq.read_table(file) for file in Path(data.folder).glob("part-*.parquet")]).sort_by("row")
    verified_N = np.full(table.num_rows, -1, np.int8)
    known = data.verification()
    verified_N[np.searchsorted(table["row"].to_numpy(), known["row"].to_numpy())] = known["verified"].to_numpy()
    zeros_N = np.zeros(table.num_rows)
    columns = {name: table[name] for name in ("row", "id", "label")} | {
        "relevance": zeros_N,
        "probability_correct": np.random.default_rng(0).random(table.num_rows),
        "weight": zeros_N,
        "mislabeled": zeros_N.astype(bool),
        "suggested_label": pa.nulls(table.num_rows, pa.int32()),
        "suggested_relevance": zeros_N,
        "verified": verified_N,
    }
    judged = pa.table(columns).cast(schema.RELEVANCE)
    shards = plan_shards(*data.class_counts(), target_rows=100)
    relevance = open_stage(place.round_path(0, "relevance"), "relevance", {}, {})
    for shard in shards:
        inside_N = shard.contains(judged["label"].to_numpy(), judged["row"].to_numpy())
        Path(relevance.uri).mkdir(parents=True, exist_ok=True)
        pq.write_table(judged.filter(pa.array(inside_N)), relevance.path(f"{shard.name}.parquet"))
    relevance.finish([shard.to_json() for shard in shards])
    features = open_stage(place.round_path(0, "features"), "features", {}, {})
    features.finish([shard.to_json() for shard in shards], {"width": 16, "projected": False})
    open_stage(place.round_path(1, "classifier"), "classifier", {}, {}).finish()
    Path(place.path("metrics.json")).write_text("{}")
    Path(place.path("settings.toml")).write_bytes(resolved_toml(settings))
    return Path(settings.run_uri)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def command(capsys, tmp_path):
    """command(run folder, ...): (exit status, rows of the CSV, what was said or complained of)."""

    def run(folder, *arguments, output="to_verify.csv"):
        file = tmp_path / output
        capsys.readouterr()
        status = cli.main(["verify-next", "--run.uri", str(folder), "--output", str(file), *arguments])
        shown = capsys.readouterr()
        rows = list(csv.DictReader(file.open())) if status == 0 else []
        return status, rows, shown.out + shown.err

    return run


def filled(rows, truth, file):
    """The person's work: right or wrong, by the true labels."""
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(row | {"verified": str(int(truth[row["id"]]))} for row in rows)


@pytest.fixture
def truth(feature_data) -> dict[str, bool]:
    table = pq.read_table(feature_data / "train.parquet")
    right = np.asarray(table["label"]) == np.asarray(table["true_label"])
    return dict(zip(table["id"].to_pylist(), right.tolist(), strict=True))


def test_it_writes_as_many_labels_as_asked_of_images_nobody_verified(finished, command, feature_data):
    status, rows, said = command(finished, "--budget", "33")
    assert status == 0
    assert list(rows[0])[:2] == ["id", "verified"]
    data = pq.read_table(feature_data / "train.parquet").to_pylist()
    verified = {row["id"] for row in data if row["verified"] != -1}
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == 33
    assert not set(ids) & verified
    assert {row["id"]: str(row["label"]) for row in data}.items() >= {(row["id"], row["label"]) for row in rows}
    assert "33 labels to verify" in said
    assert f"{len(verified)} were verified, of 4 classes" in said
    # The four classes without labels come to where the others are before these get any more.
    assert {int(row["label"]) for row in rows} == {4, 5, 6, 7}


def test_filled_in_it_is_a_verification_table_beside_the_earlier_ones(
    finished, command, truth, tmp_path, feature_values, small_settings
):
    folder = tmp_path / "verified"
    folder.mkdir()
    _, rows, said = command(finished, "--budget", "10")
    assert "--data.verification" in said
    filled(rows[:9], truth, folder / "first.csv")
    filled(rows[8:], truth, folder / "second.csv")  # an image twice, with the same answer
    assert read_verification(str(folder)).rejected.num_rows == 0
    settings = small_settings(tmp_path / "again", feature_values, {"data": {"verification": str(folder)}})
    place = Place(settings.run_uri, 0, settings.engine, Progress())
    with in_this_process(Here()):
        found = ingest.run(place, place.path("ingest"), settings.data.train, settings.data).verification()
    before = pq.read_table(finished / "ingest" / "train" / "verification.parquet")
    assert found.num_rows == before.num_rows + 10  # the column of the data counts on
    new = found.filter(pa.array(~np.isin(found["row"].to_numpy(), before["row"].to_numpy())))
    answers = {row["id"]: truth[row["id"]] for row in rows}
    assert sorted(new["verified"].to_pylist()) == sorted(int(right) for right in answers.values())


def test_what_is_left_empty_counts_as_not_verified(finished, command, tmp_path):
    command(finished, "--budget", "6")
    read = read_verification(str(tmp_path / "to_verify.csv"))
    assert read.table.num_rows == 0
    assert read.rejected.num_rows == 6  # and the run says so, row by row


def test_a_run_without_any_verification_labels_is_asked_evenly(copied, command):
    for file in (copied / "rounds" / "00" / "relevance").glob("shard-*.parquet"):
        table = pq.read_table(file)
        place = table.schema.get_field_index("verified")
        pq.write_table(table.set_column(place, "verified", pa.array(np.full(len(table), -1, np.int8))), file)
    _, rows, _ = command(copied, "--budget", "26")
    count = np.bincount([int(row["label"]) for row in rows])
    assert count.min() == 3
    assert count.max() == 4


def test_a_share_of_the_images_is_a_budget(finished, command, feature_data):
    _, rows, _ = command(finished, "--budget", "2.5%")
    assert len(rows) == round(0.025 * pq.read_metadata(feature_data / "train.parquet").num_rows)


def test_the_same_command_asks_the_same_and_another_seed_something_else(finished, command):
    first, again, other = (
        command(finished, "--budget", "20", *more, output=f"{name}.csv")[1]
        for name, more in (("first", ()), ("again", ()), ("other", ("--seed", "5")))
    )
    assert first == again != other


def test_a_file_that_somebody_may_have_filled_in_is_not_written_over(finished, command, tmp_path):
    (tmp_path / "to_verify.csv").write_text("id,verified\nimage 1,1\n")
    status, _, said = command(finished, "--budget", "5")
    assert status == 2
    assert "is there already" in said
    assert (tmp_path / "to_verify.csv").read_text() == "id,verified\nimage 1,1\n"


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", "120%", "0%", ""])
def test_a_budget_that_is_none_is_refused_with_a_remedy(text):
    with pytest.raises(ConfigError, match="expected a number of labels such as 1000, or a share of the images"):
        verify_next.parsed_budget(text)


@pytest.mark.parametrize(("text", "budget"), [("1000", 1000), ("1e6", 1_000_000), ("12,000", 12_000), ("3.2 %", 0.032)])
def test_budgets_are_numbers_or_shares(text, budget):
    assert verify_next.parsed_budget(text) == pytest.approx(budget)


def test_what_is_no_finished_run_is_refused(copied, command, tmp_path):
    assert "expected the folder of a finished run" in command(tmp_path, "--budget", "5")[2]
    shutil.rmtree(copied / "rounds" / "00" / "relevance")
    status, _, said = command(copied, "--budget", "5")
    assert status == 2
    assert "is not complete" in said


def test_lists_of_labels_are_refused_with_what_to_do_instead(copied, command):
    file = copied / "ingest" / "train" / "ingested.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"multi_label": True}))
    status, _, said = command(copied, "--budget", "5")
    assert status == 2
    assert "the labels of" in said
    assert "`cleaned` near 0.5" in said


def test_a_large_run_is_read_in_tasks_and_asks_the_same(finished, command, monkeypatch, ray_session):
    _, here, _ = command(finished, "--budget", "20", output="here.csv")
    monkeypatch.setattr(verify_next, "IN_THIS_PROCESS_IMAGES", 0)
    _, tasks, _ = command(finished, "--budget", "20", output="tasks.csv")
    assert tasks == here
