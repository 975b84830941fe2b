"""One run at a time in a run folder."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cleanscale.errors import ConfigError, StageError
from cleanscale.storage import lease, uris
from cleanscale.storage.lease import LEASE, Lease, held
from cleanscale.storage.manifests import read_json, write_json


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(lease, "SILENT_S", {True: 0.6, False: 0.6})
    monkeypatch.setattr(lease, "RENEWED_EVERY_S", 0.1)
    return str(tmp_path / "run")


def of_another_machine(folder: str) -> dict:
    return Lease(folder).mine | {"token": "theirs", "machine": "elsewhere", "host": "node-7", "pid": 4321}


def test_the_lease_lasts_as_long_as_the_run(folder):
    with held(folder):
        assert read_json(uris.join(folder, LEASE))["pid"] == os.getpid()
    assert not uris.exists(uris.join(folder, LEASE))


def test_a_second_run_of_this_machine_is_refused_at_once_and_changes_nothing(folder):
    with held(folder):
        before = read_json(uris.join(folder, LEASE))["token"]
        started = time.monotonic()
        with pytest.raises(ConfigError) as caught, held(folder):
            pass
        assert time.monotonic() - started < lease.SILENT_S[True]
        assert read_json(uris.join(folder, LEASE))["token"] == before
    assert f"{folder} is in use by a run on" in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert "another --run.uri" in str(caught.value)


def test_the_lease_of_a_killed_process_is_void_at_once(folder):
    code = f"import os; from cleanscale.storage.lease import Lease; Lease({folder!r}).take(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9
    assert uris.exists(uris.join(folder, LEASE))
    started = time.monotonic()
    with held(folder):
        assert time.monotonic() - started < lease.SILENT_S[True]


def test_a_lease_of_another_machine_is_void_when_it_falls_silent(folder):
    write_json(uris.join(folder, LEASE), of_another_machine(folder))
    started = time.monotonic()
    with held(folder):
        assert time.monotonic() - started >= lease.SILENT_S[True]


def test_a_lease_of_another_machine_that_is_renewed_is_respected(folder):
    theirs = of_another_machine(folder)
    write_json(uris.join(folder, LEASE), theirs)
    renewing = threading.Timer(0.2, lambda: write_json(uris.join(folder, LEASE), theirs | {"renewed": 1}))
    renewing.start()
    with pytest.raises(ConfigError, match=r"a run on node-7 \(process 4321"), held(folder):
        pass
    renewing.join()


def test_of_two_runs_that_start_at_the_same_moment_one_goes_on(folder):
    leases, refused = [Lease(folder) for _ in range(2)], []
    for one in leases:  # neither sees the other's before it writes its own
        one.mine["machine"] = one.mine["token"]
    both_looked = threading.Barrier(2)
    for one in leases:
        one.wait_for_silence = lambda found: None

    def take(one: Lease) -> None:
        both_looked.wait()
        try:
            one.take()
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=[one]) for one in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


def test_a_run_whose_folder_was_taken_over_ends_and_leaves_the_others_lease(folder):

    def be_taken_over() -> None:
        write_json(uris.join(folder, LEASE), of_another_machine(folder))
        time.sleep(20)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the program does
    try:
        with pytest.raises(StageError, match=r"was taken over by a run on node-7"), held(folder):
            be_taken_over()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_json(uris.join(folder, LEASE))["host"] == "node-7"


def test_a_store_that_is_away_for_a_moment_ends_no_run(folder, monkeypatch):
    with held(folder):
        with monkeypatch.context() as patch:
            patch.setattr(lease, "read_json", lambda uri: uris.read_bytes(uri + ".missing"))
            time.sleep(0.3)
        time.sleep(0.3)
        assert read_json(uris.join(folder, LEASE))["renewed"] > 0


def test_a_run_folder_in_a_jobs_copy_of_its_working_directory_is_refused():
    folder = "/somewhere/session_1/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef/runs/food"
    with pytest.raises(ConfigError, match=r"expected a place that stays; give --run\.uri s3://"), held(folder):
        pass
