"""Local places on a cluster of several nodes. Several machines are played by one: what differs is what it is told."""

import os

import pytest
import ray

from cleanscale.engine import shared_places
from cleanscale.engine.shared_places import check_seen_by_all_nodes, digest, other_nodes, unseen
from cleanscale.errors import ConfigError


@pytest.fixture
def settings_file(tmp_path) -> str:
    (tmp_path / "settings.toml").write_text("[run]\nseed = 0\n")
    return str(tmp_path / "settings.toml")


@pytest.fixture
def two_nodes(ray_session, monkeypatch) -> None:
    """The only node there is, as if it were another than the one of this process."""
    monkeypatch.setattr(shared_places, "other_nodes", ray.nodes)


def test_a_place_that_is_not_there_or_has_another_content_is_not_seen(settings_file, tmp_path):
    seen = {settings_file: digest(settings_file), str(tmp_path): None}
    assert unseen(seen) == []
    assert unseen(seen | {"no/such/folder": None}) == ["no/such/folder"]
    assert unseen({settings_file: "digest of another machine's file"}) == [settings_file]


def test_a_disk_that_all_nodes_share_is_fine(two_nodes, settings_file, tmp_path):
    check_seen_by_all_nodes(settings_file, [str(tmp_path), "s3://bucket/that/nobody/asks/for", f"{tmp_path}/*.jpg"])


def test_a_run_folder_that_another_node_does_not_see_is_the_users_error(two_nodes, settings_file, monkeypatch):
    monkeypatch.setattr(shared_places, "digest", lambda uri: "what this node wrote")
    with pytest.raises(ConfigError) as caught:
        check_seen_by_all_nodes(settings_file, [])
    assert settings_file in str(caught.value)
    assert "s3://" in str(caught.value)


def test_data_that_another_node_does_not_see_is_the_users_error(two_nodes, settings_file):
    with pytest.raises(ConfigError, match="no/such/data"):
        check_seen_by_all_nodes(settings_file, ["no/such/data"])


def test_on_one_machine_nobody_is_asked(ray_session, settings_file):
    assert other_nodes() == []
    check_seen_by_all_nodes(settings_file, ["no/such/data"])


def test_a_node_that_is_lost_while_it_is_asked_ends_no_run(two_nodes, settings_file, monkeypatch, caplog):
    @ray.remote(max_retries=0)
    def die(expected):
        os._exit(1)

    monkeypatch.setattr(shared_places, "_unseen_on", lambda node_id, expected: die.remote(expected))
    check_seen_by_all_nodes(settings_file, [])
    assert "a node did not say" in caplog.text


def test_a_cluster_without_nodes_is_warned_that_those_to_come_must_see_the_places(settings_file, monkeypatch, caplog):
    monkeypatch.setattr(shared_places, "other_nodes", list)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    check_seen_by_all_nodes(settings_file, [])
    assert f"those that start later must see {settings_file}" in caplog.text
