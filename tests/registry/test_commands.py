"""register, promote, rollback, list: what they say, refuse and leave."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from cleanscale import cli
from cleanscale.registry.store import Entry, Store


@pytest.fixture
def again(registered, store, monkeypatch):
    """again("other"): a copy of the run under another name in the same store; the copy's name."""

    def copy(name: str) -> str:
        shutil.copytree(registered / "small", registered / name)
        return str(registered / name)

    return copy


def test_a_version_says_what_it_was_made_from(store, registered):
    (version,) = store.versions("small-classifier")
    tags = version.tags
    assert tags["run.uri"] == str(registered / "small")
    manifest = json.loads((registered / "small" / "ingest" / "train" / "manifest.json").read_text())
    assert tags["data_fingerprint"] == manifest["fingerprint"]
    assert tags["git_revision"]
    assert tags["cleanscale_version"]
    metrics = json.loads((registered / "small" / "metrics.json").read_text())
    top1 = metrics["classification"]["round_1"]["top1"]
    assert float(tags["metric.top1"]) == pytest.approx(top1["value"], abs=0.01)
    assert float(tags["metric.top1_low"]) == pytest.approx(top1["low"], abs=0.01)
    run = store.client.get_run(version.run_id)
    assert run.data.metrics["classifier/top1"] == pytest.approx(top1["value"])
    assert run.data.tags["run.uri"] == str(registered / "small")
    (detector,) = store.versions("small-detector")
    assert float(detector.tags["metric.verified"]) == 60
    assert 0 <= float(detector.tags["metric.class_fold_error"]) <= 100


def test_models_carry_the_runs_settings(store, registered):
    import mlflow

    assert store.client
    file = mlflow.artifacts.download_artifacts("models:/small-detector@champion/data/detector/settings.toml")
    with open(file) as content:  # noqa: PTH123
        assert content.read() == (registered / "small" / "settings.toml").read_text()


def test_the_first_version_becomes_champion_and_is_told_so(store):
    for model in ("small-classifier", "small-detector"):
        holder = store.holder(model, "champion")
        assert str(holder.version) == "1"
        assert holder.tags["promoted_by_force"] == "false"
        assert "no champion yet" in json.loads(holder.tags["promotion.champion"])["reason"]


def test_a_command_leaves_no_store_behind_for_what_this_process_does_next(command, registered):
    assert command("list", "--runs", str(registered))[0] == 0
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_registering_again_makes_no_second_version(command, registered, store):
    status, out, err = command("register", str(registered / "small"))
    assert (status, err) == (0, "")
    assert "small-classifier version 1: was registered already" in out
    assert "mlflow models serve -m 'models:/small-classifier@champion'" in out
    assert len(store.versions("small-classifier")) == 1


def test_promoting_the_champion_changes_nothing(command, registered, store):
    before = store.history("small-classifier", "champion")
    status, out, _ = command("promote", str(registered / "small"))
    assert status == 0
    assert "version 1 is the champion already" in out
    assert store.history("small-classifier", "champion") == before


def test_what_is_not_better_is_refused_with_the_evidence_and_force_says_so_in_the_tags(command, again, store):
    run = again("refused")
    assert command("promote", run, "--alias", "best")[0] == 0
    status, out, err = command("promote", run, "--alias", "best", "--classifier", "round_0")
    assert status == 3
    assert "version 2 is not better than version 1" in out
    for line in ("new ", "champion ", "difference "):
        (shown,) = [text for text in out.splitlines() if text.strip().startswith(line)]
        assert shown.count("[") == 1
        assert shown.endswith("n = 48")
    assert err == "cleanscale: not promoted; best stays as it is (--force promotes anyway)\n"
    assert store.aliases("refused-classifier") == {"best": "1"}
    assert command("promote", run, "--alias", "best", "--classifier", "round_0", "--force")[0] == 0
    holder = store.holder("refused-classifier", "best")
    assert str(holder.version) == "2"
    assert holder.tags["promoted_by_force"] == "true"
    evidence = json.loads(holder.tags["promotion.best"])
    assert evidence["against_version"] == "1"
    assert evidence["difference"]["n"] == 48
    assert evidence["difference"]["low"] <= 0


def test_a_champion_on_other_test_files_is_asked_about_this_runs_images(command, again, store):
    run = again("asked")
    command("promote", run)
    # Its stored predictions do not count when they are of other files: now it has to predict.
    store.tag("asked-classifier", "1", {"test_files": "others"})
    evidence = []
    for files in ("others", json.loads(open(f"{run}/ingest/test/manifest.json").read())["key"]["inputs"]["data"]):  # noqa: PTH123, SIM115
        store.tag("asked-classifier", "1", {"test_files": files})
        status, out, _ = command("promote", run, "--classifier", "round_0")
        assert status == 3
        evidence.append(out)
    assert evidence[0] == evidence[1]


def test_what_cannot_be_compared_is_refused_and_goes_through_by_force(command, registered, again, store):
    run = again("mixed")
    command("promote", str(registered / "features"), "--name", "mixed")
    status, out, _ = command("promote", run)
    assert status == 3
    assert "takes features and this run images" in out
    assert command("promote", run, "--force")[0] == 0
    holder = store.holder("mixed-classifier", "champion")
    assert str(holder.version) == "2"
    assert holder.tags["promoted_by_force"] == "true"
    assert "cannot be compared" in json.loads(holder.tags["promotion.champion"])["reason"]


def test_rollback_takes_back_one_promotion_after_the_other_for_both_models(command, again, registered, store):
    run = again("back")
    for classifier in ("round_0", "round_1", "round_0"):
        assert command("promote", run, "--force", "--classifier", classifier)[0] == 0
    place = ("--runs", str(registered))
    assert store.aliases("back-classifier") == {"champion": "1"}
    status, out, _ = command("rollback", "back", *place)
    assert status == 0
    assert "back-classifier@champion is version 2 again (it was 1)" in out
    command("rollback", "back", *place)
    assert store.aliases("back-classifier") == {"champion": "1"}
    status, _, err = command("rollback", "back", *place)
    assert status == 2
    assert "version 1 is the first champion" in err
    moves = [(entry.how, entry.version) for entry in store.history("back-classifier", "champion")]
    assert [how for how, _ in moves].count("rollback") == 2
    assert moves[0] == ("promote", "1")
    assert len(store.history("back-detector", "champion")) == len(moves)


def test_list_shows_versions_aliases_measures_and_origin(command, registered):
    status, out, err = command("list", "small", "--runs", str(registered))
    assert (status, err) == (0, "")
    metrics = json.loads((registered / "small" / "metrics.json").read_text())
    assert f"{metrics['classification']['round_1']['top1']['value']:.4g}" in out
    for part in ("small-classifier", "small-detector", "champion", "top-1 %", str(registered / "small")):
        assert part in "".join(out.split("\n")) or part in out
    assert "features-classifier" not in out
    assert "features-classifier" in command("list", "--runs", str(registered))[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["register", "{runs}/nothing"], "holds no settings.toml"),
        (["register", "{runs}/small", "--classifier", "round_7"], "--classifier is 'round_7'; expected one of round_0"),
        (["register", "{runs}/small", "--classifier", "fine_tuned_on_clean"], "is not complete"),
        (["register", "{runs}/small", "--name", "a/b"], "the name 'a/b' cannot be registered"),
        (["register", "{runs}/small", "--tracking.uri", "http://127.0.0.1:9"], "MLflow at 'http://127.0.0.1:9'"),
        (["rollback", "nobody", "--runs", "{runs}"], "nobody-classifier has no alias 'champion'"),
        (["list", "nobody", "--runs", "{runs}"], "has no models called nobody"),
        (["list", "--runs", "{runs}/small"], "there is no"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_status_2(command, registered, arguments, said):
    status, out, err = command(*(argument.replace("{runs}", str(registered)) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("cleanscale: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_run_elsewhere_needs_a_store_that_is_named(command):
    status, _, err = command("list", "--runs", "s3://bucket/runs")
    assert status == 2
    assert "set MLFLOW_TRACKING_URI or give --tracking.uri" in err


def test_a_run_that_has_not_ended_is_not_registered(command, again):
    from pathlib import Path

    run = again("unfinished")
    (Path(run) / "rounds" / "01" / "classifier" / "manifest.json").unlink()
    status, _, err = command("register", run)
    assert status == 2
    assert "rounds/01/classifier' is not complete" in err


@pytest.mark.parametrize("name", ["register", "promote", "rollback", "list"])
def test_each_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--tracking.uri" in said
    assert len(said.splitlines()) > 8


class Registry(Store):
    """A store whose history is given."""

    def history(self, model, alias):
        return [Entry(how, version, "now") for how, version in self.moves]

    def aliases(self, model):
        return {"champion": self.now}


@pytest.mark.parametrize(
    ("moves", "now", "before"),
    [
        ([("promote", "1")], "1", None),
        ([("promote", "1"), ("promote", "2")], "2", "1"),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1")], "1", None),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1"), ("force", "3")], "3", "1"),
        ([("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "2")], "2", "1"),
        ([("promote", "1"), ("promote", "2")], "7", "2"),  # moved by hand since
        ([], "1", None),
    ],
)
def test_where_a_rollback_leads(moves, now, before):
    store = Registry("unused")
    object.__setattr__(store, "moves", moves)
    object.__setattr__(store, "now", now)
    assert store.version_before("model", "champion") == before
