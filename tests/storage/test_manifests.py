import json
import logging
from pathlib import Path

import numpy as np
import pytest

from cleanscale.storage import uris
from cleanscale.storage.manifests import defined, differences, fingerprint, flatten, open_stage, read_json, write_json

SETTINGS = {"cleannet": {"steps": 60, "beta": 0.1}}
INPUTS = {"features": "f1", "references": "r1"}


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "run" / "rounds" / "00" / "cleannet")


def test_a_stage_without_a_manifest_never_happened(folder):
    assert open_stage(folder, "cleannet", SETTINGS, INPUTS).complete is None
    assert open_stage(folder, "cleannet", SETTINGS, INPUTS).complete is None


def test_a_finished_stage_is_complete_with_what_it_said(folder):
    open_stage(folder, "cleannet", SETTINGS, INPUTS).finish([{"file": "a", "rows": 3}], {"width": 7})
    again = open_stage(folder, "cleannet", SETTINGS, INPUTS)
    assert again.complete is not None
    assert again.complete.shards == [{"file": "a", "rows": 3}]
    assert again.complete.notes == {"width": 7}


def test_a_stage_that_is_half_removed_does_not_count(folder, monkeypatch):
    stage = open_stage(folder, "cleannet", SETTINGS, INPUTS)
    stage.finish([{"file": "a", "rows": 3}])
    remove = uris.remove_tree

    def killed(uri: str) -> None:
        if uri == folder:
            raise KeyboardInterrupt
        remove(uri)

    monkeypatch.setattr(uris, "remove_tree", killed)
    with pytest.raises(KeyboardInterrupt):
        open_stage(folder, "cleannet", SETTINGS | {"seed": 1}, INPUTS)
    monkeypatch.undo()
    assert open_stage(folder, "cleannet", SETTINGS, INPUTS).complete is None


def test_a_half_made_stage_goes_on_with_its_files(folder, caplog):
    stage = open_stage(folder, "cleannet", SETTINGS, INPUTS)
    write_json(stage.path("piece.json"), 1)
    with caplog.at_level(logging.INFO, "cleanscale"):
        again = open_stage(folder, "cleannet", SETTINGS, INPUTS)
    assert again.resumed
    assert read_json(again.path("piece.json")) == 1
    assert "rounds/00/cleannet: going on where it was interrupted" in caplog.text


@pytest.mark.parametrize("finished", [True, False])
def test_another_key_clears_the_folder_and_says_what_changed_from_what_to_what(folder, caplog, finished):
    stage = open_stage(folder, "cleannet", SETTINGS, INPUTS)
    write_json(stage.path("piece.json"), 1)
    if finished:
        stage.finish()
    changed = {"cleannet": {"steps": 80, "beta": 0.1}}
    with caplog.at_level(logging.INFO, "cleanscale"):
        again = open_stage(folder, "cleannet", changed, {"features": "f2", "references": "r1"})
    assert again.complete is None
    assert not again.resumed
    assert read_json(again.path("piece.json")) is None
    assert "rounds/00/cleannet: redone because cleannet.steps was 60 and is 80; its input 'features' changed" in (
        caplog.text
    )


def test_a_stage_that_is_made_for_the_first_time_is_not_called_redone(folder, caplog):
    with caplog.at_level(logging.INFO, "cleanscale"):
        open_stage(folder, "cleannet", SETTINGS, INPUTS)
    assert caplog.text == ""


def test_differences_name_settings_inputs_and_other_versions():
    before = {"stage": "s", "settings": {"a": {"b": 1, "gone": True}}, "inputs": {"x": "1"}}
    now = {"stage": "s", "settings": {"a": {"b": 2}}, "inputs": {"x": "1", "weights": "2"}}
    assert differences(before, now) == [
        "a.b was 1 and is 2",
        "a.gone was True and is None",
        "its input 'weights' changed",
    ]
    assert differences(now, now) == ["this version of cleanscale makes it in another way"]


def test_an_input_that_is_no_longer_read_is_a_difference():
    before = {"stage": "s", "settings": {}, "inputs": {"x": "1", "weights": "2"}}
    now = {"stage": "s", "settings": {}, "inputs": {"x": "1"}}
    assert differences(before, now) == ["its input 'weights' is gone"]


def test_a_half_written_document_counts_as_none(folder, tmp_path):
    stage = open_stage(folder, "cleannet", SETTINGS, INPUTS)
    stage.finish()
    path = tmp_path / "run" / "rounds" / "00" / "cleannet" / "manifest.json"
    for text in (path.read_text()[:-20], "", "\ufffd"):
        path.write_text(text)
        assert read_json(str(path)) is None
        assert open_stage(folder, "cleannet", SETTINGS, INPUTS).complete is None


def test_bytes_that_are_no_text_count_as_none(tmp_path):
    (tmp_path / "document.json").write_bytes(b"\xff\xfe\x00")
    assert read_json(str(tmp_path / "document.json")) is None


def test_documents_have_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(str(tmp_path / "document.json"), {"value": float("nan")})


def test_a_number_that_is_not_defined_becomes_null(tmp_path):
    numbers = {"a": [float("nan"), 1.5, (np.float32(0.5), np.int64(3))], "b": {"c": float("inf"), "d": None, "e": "x"}}
    write_json(str(tmp_path / "document.json"), defined(numbers))
    read = {"a": [None, 1.5, [0.5, 3]], "b": {"c": None, "d": None, "e": "x"}}
    assert read_json(str(tmp_path / "document.json")) == read


def test_the_fingerprint_is_that_of_the_content_in_any_order(folder):
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    manifest = open_stage(folder, "cleannet", SETTINGS, INPUTS).finish()
    assert json.loads(Path(folder, "manifest.json").read_text())["fingerprint"] == manifest.fingerprint


def test_keys_survive_json(folder):
    # Tuples become lists and paths strings on disk: the same settings must still be recognised.
    settings = {"cleannet": {"widths": (256, 128), "factor": 1.0}}
    open_stage(folder, "cleannet", settings, {}).finish()
    assert open_stage(folder, "cleannet", settings, {}).complete is not None


def test_flat_names_are_those_of_the_command_line():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
