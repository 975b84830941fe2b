"""`cleanscale verify-next`: a CSV to fill in, and what comes of it when it is filled in."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale import cli, verify_next
from cleanscale.datasets.verification import read_verification
from cleanscale.errors import ConfigError
from cleanscale.reporting.progress import Progress
from cleanscale.stages import ingest
from cleanscale.stages.place import Place


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


def test_it_writes_as_many_labels_as_asked_of_images_nobody_verified(features_run, command, feature_data):
    status, rows, said = command(features_run.folder, "--budget", "33")
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
    features_run, command, truth, tmp_path, feature_values, small_settings, ray_session
):
    folder = tmp_path / "verified"
    folder.mkdir()
    _, rows, said = command(features_run.folder, "--budget", "10")
    assert "--data.verification" in said
    filled(rows[:9], truth, folder / "first.csv")
    filled(rows[8:], truth, folder / "second.csv")  # an image twice, with the same answer
    assert read_verification(str(folder)).rejected.num_rows == 0
    settings = small_settings(tmp_path / "again", feature_values, {"data": {"verification": str(folder)}})
    place = Place(settings.run_uri, 0, settings.engine, Progress())
    found = ingest.run(place, place.path("ingest"), settings.data.train, settings.data).verification()
    before = pq.read_table(features_run.folder / "ingest" / "train" / "verification.parquet")
    assert found.num_rows == before.num_rows + 10  # the column of the data counts on
    new = found.filter(pa.array(~np.isin(found["row"].to_numpy(), before["row"].to_numpy())))
    answers = {row["id"]: truth[row["id"]] for row in rows}
    assert sorted(new["verified"].to_pylist()) == sorted(int(right) for right in answers.values())


def test_what_is_left_empty_counts_as_not_verified(features_run, command, tmp_path):
    command(features_run.folder, "--budget", "6")
    read = read_verification(str(tmp_path / "to_verify.csv"))
    assert read.table.num_rows == 0
    assert read.rejected.num_rows == 6  # and the run says so, row by row


def test_a_run_without_any_verification_labels_is_asked_evenly(features_run, copy_run, command):
    folder = copy_run(features_run)
    for file in (folder / "rounds" / "00" / "relevance").glob("shard-*.parquet"):
        table = pq.read_table(file)
        place = table.schema.get_field_index("verified")
        pq.write_table(table.set_column(place, "verified", pa.array(np.full(len(table), -1, np.int8))), file)
    _, rows, _ = command(folder, "--budget", "26")
    count = np.bincount([int(row["label"]) for row in rows])
    assert count.min() == 3
    assert count.max() == 4


def test_a_share_of_the_images_is_a_budget(features_run, command, feature_data):
    _, rows, _ = command(features_run.folder, "--budget", "2.5%")
    assert len(rows) == round(0.025 * pq.read_metadata(feature_data / "train.parquet").num_rows)


def test_the_same_command_asks_the_same_and_another_seed_something_else(features_run, command):
    first, again, other = (
        command(features_run.folder, "--budget", "20", *more, output=f"{name}.csv")[1]
        for name, more in (("first", ()), ("again", ()), ("other", ("--seed", "5")))
    )
    assert first == again != other


def test_a_file_that_somebody_may_have_filled_in_is_not_written_over(features_run, command, tmp_path):
    (tmp_path / "to_verify.csv").write_text("id,verified\nimage 1,1\n")
    status, _, said = command(features_run.folder, "--budget", "5")
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


def test_what_is_no_finished_run_is_refused(features_run, copy_run, command, tmp_path):
    assert "expected the folder of a finished run" in command(tmp_path, "--budget", "5")[2]
    folder = copy_run(features_run)
    shutil.rmtree(folder / "rounds" / "00" / "relevance")
    status, _, said = command(folder, "--budget", "5")
    assert status == 2
    assert "is not complete" in said


def test_lists_of_labels_are_refused_with_what_to_do_instead(features_run, copy_run, command):
    folder = copy_run(features_run)
    file = folder / "ingest" / "train" / "ingested.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"multi_label": True}))
    status, _, said = command(folder, "--budget", "5")
    assert status == 2
    assert "the labels of" in said
    assert "`cleaned` near 0.5" in said


def test_a_large_run_is_read_in_tasks_and_asks_the_same(features_run, command, monkeypatch, ray_session):
    _, here, _ = command(features_run.folder, "--budget", "20", output="here.csv")
    monkeypatch.setattr(verify_next, "IN_THIS_PROCESS_IMAGES", 0)
    _, tasks, _ = command(features_run.folder, "--budget", "20", output="tasks.csv")
    assert tasks == here
