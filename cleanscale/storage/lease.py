"""One run at a time in a run folder: a lease that its holder renews, and that is void when the holder is gone.

Two runs in one folder would take each other's half-made stages for their own. The lease is a small file and needs no
lock of the store: whoever finds one waits to see whether it is renewed, so the clocks of machines are not compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cleanscale.errors import CleanscaleError, ConfigError, StageError
from cleanscale.storage import uris
from cleanscale.storage.manifests import read_json, write_json

log = logging.getLogger(__name__)

LEASE = "lease.json"
RENEWED_EVERY_S = 10.0
# A lease of another machine that is not renewed for so long is void: its holder was killed, or its machine is gone.
# On a local (shared) disk; on an object store, where renewing may take as long as a busy store is waited for.
SILENT_S = {True: 30.0, False: 120.0}
# Two runs that start at the same moment both write; after this time both read the same file, and one goes on.
SETTLED_AFTER_S = {True: 0.2, False: 1.0}  # on a local disk; on an object store
TEMPORARY = "working_dir_files"  # where Ray unpacks the working directory of a job, until the cluster ends


class Lease:
    """The lease of one run folder, as this process holds it."""

    def __init__(self, run_uri: str) -> None:
        self.run_uri, self.uri = run_uri, uris.join(run_uri, LEASE)
        self.silent_s = SILENT_S[uris.is_local(run_uri)]
        self.mine = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "process": process_start(os.getpid()),
            "job": job_of_ray(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "renewed": 0,
        }
        self.lost_to: dict[str, Any] | None = None

    def take(self) -> None:
        """Raises: ConfigError when another run holds the folder."""
        found = read_json(self.uri)
        if found is not None and not is_gone(found):
            self.wait_for_silence(found)
        write_json(self.uri, self.mine)
        time.sleep(SETTLED_AFTER_S[uris.is_local(self.run_uri)])
        found = read_json(self.uri)
        if found is not None and found["token"] != self.mine["token"]:
            raise in_use(self.run_uri, found)

    def wait_for_silence(self, found: dict[str, Any]) -> None:
        if found["machine"] == self.mine["machine"]:  # and its process lives
            raise in_use(self.run_uri, found)
        log.info(
            "%s was last used by %s; waiting up to %.0f s to see whether that run is still there",
            self.run_uri,
            in_words(found),
            self.silent_s,
        )
        deadline = time.monotonic() + self.silent_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.silent_s / 10))
            now = read_json(self.uri)
            if now is None:  # it ended by itself
                return
            if now != found:
                raise in_use(self.run_uri, now)

    def renew(self) -> bool:
        """Whether the folder is still this run's. A store that cannot be reached for a moment changes nothing."""
        with contextlib.suppress(CleanscaleError):
            found = read_json(self.uri)
            if found is not None and found["token"] != self.mine["token"]:
                self.lost_to = found
                return False
            self.mine["renewed"] += 1
            write_json(self.uri, self.mine)
        return True

    def give_back(self) -> None:
        with contextlib.suppress(CleanscaleError):
            found = read_json(self.uri)
            if found is not None and found["token"] == self.mine["token"]:
                uris.remove_tree(self.uri)


def check_outlives_the_job(run_uri: str) -> None:
    """Raises: ConfigError for a run folder in the temporary copy that a Ray job has of its working directory."""
    if uris.is_local(run_uri) and f"/{TEMPORARY}/" in run_uri:
        raise ConfigError(
            f"the run folder {run_uri} is in the job's copy of its working directory, which is deleted some time after "
            "the job and is another one for the next job; expected a place that stays; give --run.uri s3://... or the "
            "absolute path of a disk that all nodes share"
        )


@contextlib.contextmanager
def held(run_uri: str) -> Iterator[None]:
    """Hold the run folder for the time of a `with`, whose process ends on SIGTERM by KeyboardInterrupt.

    Raises: ConfigError when another run holds it, or when it would not outlive this one; StageError when another run
    took it over while this one was cut off.
    """
    check_outlives_the_job(run_uri)
    lease, stop = Lease(run_uri), threading.Event()
    lease.take()

    def keep_renewing() -> None:
        while not stop.wait(RENEWED_EVERY_S):
            if not lease.renew():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    renewing = threading.Thread(target=keep_renewing, daemon=True, name="lease")
    renewing.start()
    try:
        yield
    except KeyboardInterrupt:
        if lease.lost_to is None:
            raise
        raise StageError(
            f"{run_uri} was taken over by {in_words(lease.lost_to)}, because this run could not renew its lease for "
            f"{lease.silent_s:.0f} s; expected one run at a time in a folder; follow that one"
        ) from None
    finally:
        stop.set()
        renewing.join()
        lease.give_back()


def in_use(run_uri: str, holder: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"{run_uri} is in use by {in_words(holder)}; expected one run at a time in a folder; wait for it or stop it, "
        "or give this one another --run.uri"
    )


def in_words(holder: dict[str, Any]) -> str:
    job = f", job {holder['job']}" if holder.get("job") else ""
    return f"a run on {holder['host']} (process {holder['pid']}{job}, since {holder['since']})"


def is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder is known to have ended: it ran here, and its process is not there any more."""
    return holder["machine"] == machine() and process_start(holder["pid"]) != holder["process"]


def machine() -> str:
    """One boot of one machine or container: process ids mean the same wherever this is the same."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def process_start(pid: int) -> str | None:
    """When a process of this machine started, which tells it from a later one of the same number; None: not there."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "running"
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else fields[19]
    return None


def job_of_ray() -> str | None:
    """The submission id of the Ray job that this process is the driver of."""
    with contextlib.suppress(ValueError):
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return (config.get("metadata") or {}).get("job_submission_id")
    return None
