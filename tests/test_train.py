"""The command line: what it refuses and how, and what it shows."""

import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.config import Settings


def run_program(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cleanscale.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def refused(call_main, capsys, tmp_path):
    """Run with arguments that cannot be used; returns the one message."""

    def run(*arguments: str) -> str:
        folder = () if any(a.startswith("--run.uri") for a in arguments) else ("--run.uri", str(tmp_path / "run"))
        status, _ = call_main(["--tracking.enabled", "false", *folder, *arguments])
        shown = capsys.readouterr()
        assert status == 2
        assert "Traceback" not in shown.err + shown.out
        (message,) = [line for line in shown.err.splitlines() if line.startswith("cleanscale: ")]
        return message

    return run


def test_help_explains_every_setting_and_starts_nothing():
    done = run_program("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    words = " ".join(done.stdout.split())
    for section, field in Settings.model_fields.items():
        for name, inner in type(field.default).model_fields.items():
            assert f"--{section}.{name} " in words
            assert inner.description
            # argparse breaks lines at hyphens too
            assert "".join(inner.description.split())[:40] in "".join(done.stdout.split()), name


def test_a_users_mistake_ends_with_status_2_and_one_message():
    done = run_program("--cleannet.stepz", "3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("cleanscale: ")
    assert "cleannet.stepz" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--cleannet.stepz", "3"], "cleannet.stepz"),
        (["--cleannet.steps", "many"], "--cleannet.steps is 'many'"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--data.train", "missing/folder"], "nothing found at"),
        (["--detector.name", "guess"], "--detector.name is 'guess'"),
    ],
)
def test_what_cannot_be_used_is_named(refused, arguments, found):
    assert found in refused(*arguments)


def test_a_column_of_the_wrong_kind_is_named_with_what_to_do(refused, tmp_path):
    table = pa.table({"id": ["a", "b"], "label": [0.5, 1.5], "feature": [[0.0, 1.0], [1.0, 0.0]]})
    pq.write_table(table, tmp_path / "part.parquet")
    message = refused("--data.train", str(tmp_path / "part.parquet"))
    assert "'label' is" in message
    assert "part.parquet" in message
    assert "--data.label" in message


def test_a_column_that_is_not_there_is_named(refused, feature_data):
    assert "'quality'" in refused("--data.train", str(feature_data / "train.parquet"), "--data.label", "quality")
    assert "'truth'" in refused("--data.train", str(feature_data / "train.parquet"), "--data.true_label", "truth")


def test_an_empty_folder_is_named(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused("--data.train", str(tmp_path / "empty"))


def test_a_run_folder_that_cannot_be_written_is_named_before_anything_starts(refused, tmp_path, feature_data):
    (tmp_path / "file").write_text("a file, not a folder")
    started = time.monotonic()
    message = refused("--run.uri", str(tmp_path / "file" / "run"), "--data.train", str(feature_data / "train.parquet"))
    assert str(tmp_path / "file" / "run") in message
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("place", ["--data.train", "--run.uri", "--data.verification"])
def test_an_endpoint_that_does_not_answer_ends_within_a_minute(refused, monkeypatch, feature_data, place):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    started = time.monotonic()
    others = () if place == "--data.train" else ("--data.train", str(feature_data / "train.parquet"))
    message = refused(*others, place, "s3://bucket/somewhere.parquet")
    assert "s3://bucket/somewhere.parquet" in message
    assert time.monotonic() - started < 60


def test_more_workers_than_gpus_are_refused(refused, feature_data):
    arguments = ["--data.train", str(feature_data / "train.parquet"), "--engine.use_gpu", "--engine.num_workers", "2"]
    message = refused(*arguments)
    assert "--engine.num_workers is 2 with GPUs, but the cluster has 0" in message


def test_the_summary_says_what_was_found_and_where_it_is(features_run, capsys):
    """The second call of a finished run: everything is skipped, the summary is shown."""
    from cleanscale.pipeline import run
    from cleanscale.reporting.terminal import print_summary, report_console

    print_summary(report_console(), run(features_run.settings))
    shown = capsys.readouterr()
    text = shown.out + shown.err
    for word in ("relevance", "metrics.json", "rejected", "%"):
        assert word in text
