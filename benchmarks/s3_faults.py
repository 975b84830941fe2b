"""A run on S3 that goes wrong all the time against the same run undisturbed: time, requests, and whether they agree.

    python benchmarks/s3_faults.py [--seed 1] [--faults slow_down=0.05,stall=0.01] [--latency 0.0] [--expire]

Draws 8 classes of glyphs, puts them on an S3 server in this process, and runs `python -m cleanscale.train` as a user
does, data, run folder and checkpoints on s3://: once as the server is, once through a proxy that injects faults.
Prints one JSON line: faults by kind, seconds, requests by stage and operation, and whether the tables are equal.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from s3_proxy import Proxy, Request, moto_server

FAULTS = {"slow_down": 0.08, "internal_error": 0.02, "reset_upload": 0.04, "reset_download": 0.04, "stall": 0.015}
BUCKET = "bench"
PATIENCE_S = 40  # five seconds of silence are then a stall
LONGEST_S = 900
SETTINGS: dict[str, Any] = {
    "backbone": {"name": "test_resnet", "weights": "", "image_size": 16},
    "augmentation": {"horizontal_flip": False, "evaluation_crop": 1.0},
    "classifier": {"epochs": 2, "finetune_epochs": 1, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.004},
    "cleannet": {"steps": 8, "start_steps": 12, "class_folds": 2, "references_per_class": 8, "classes_per_half": 4},
    "heads": {"epochs": 2, "hidden_width": 16, "batch": 64},
    "evidence": {"row_folds": 2, "class_folds": 2},
    "evaluate": {"resamples": 20},
    "engine": {"num_cpus": 2},
    "glyphs": {
        "classes": 8,
        "train_per_class": 40,
        "test_per_class": 6,
        "size": 16,
        "verified_classes": 4,
        "verified_per_class": 15,
    },
}


def put_data(endpoint: str, folder: Path) -> dict[str, Any]:
    """Draw the images on this disk, put them on the server; the data settings that read them there."""
    from cleanscale.config import validate
    from cleanscale.engine.session import session
    from cleanscale.reporting.progress import Progress
    from cleanscale.stages import glyphs
    from cleanscale.stages.place import Place

    settings = validate({**SETTINGS, "data": {"train": "glyphs"}})
    place = Place(str(folder), 0, settings.engine, Progress())
    with session(settings.engine):
        data = glyphs.run(place, str(folder), settings.glyphs, settings.data)
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    for file in sorted(folder.rglob("*.parquet")):
        client.upload_file(str(file), BUCKET, f"data/{file.relative_to(folder).as_posix()}")
    known = data.model_dump(exclude_none=True, exclude_defaults=True)
    return {k: v.replace(str(folder), f"s3://{BUCKET}/data") if isinstance(v, str) else v for k, v in known.items()}


def train(endpoint: str, config: Path, name: str, environment: Mapping[str, str] | None = None) -> float:
    """Run the main job as a user starts it, on S3. Returns seconds."""
    command = [sys.executable, "-m", "cleanscale.train", "--config", str(config), "--run.uri", f"s3://{BUCKET}/{name}"]
    started = time.monotonic()
    place = {**os.environ, "AWS_ENDPOINT_URL": endpoint, "CLEANSCALE_S3_PATIENCE_S": str(PATIENCE_S)}
    place |= {"MLFLOW_TRACKING_URI": f"sqlite:///{config.parent}/mlflow.db", **(environment or {})}
    done = subprocess.run(command, env=place, capture_output=True, text=True, timeout=LONGEST_S)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-6000:]}")
    return time.monotonic() - started


def relevance(endpoint: str, name: str) -> pa.Table:
    """The relevance table of a run, by row."""
    client = boto3.client("s3", endpoint_url=endpoint)
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{name}/relevance/")["Contents"]
    bodies = [client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in listed]
    return pa.concat_tables([pq.read_table(io.BytesIO(body)) for body in bodies]).sort_by("row")


def by_stage(requests: list[Request], name: str) -> dict[str, dict[str, int]]:
    """Requests of a run by stage and operation; Ray Train's own, of all stages, are `ray_train`."""
    found: dict[str, Counter[str]] = {}
    for one in requests:
        path = one.key.removeprefix(name).strip("/")
        stage = re.match(r"(?:rounds/\d+/)?([^/]*)", path)[1] if one.key.startswith(name) else "data"
        stage = "ray_train" if "/ray_train" in path else stage if "/" in path or stage not in FILES else "run folder"
        found.setdefault(stage, Counter())[one.operation] += 1
    return {stage: dict(sorted(found[stage].items())) for stage in sorted(found)}


FILES = ("settings.toml", "metrics.json", "tracking.json", "rejected.parquet", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default="", help="kind=probability,... instead of those of this script")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--only-count", action="store_true", help="only the undisturbed run")
    arguments = parser.parse_args()
    faults = {k: float(v) for k, v in (one.split("=") for one in arguments.faults.split(",") if one)} or FAULTS
    os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_DEFAULT_REGION="us-east-1")
    with tempfile.TemporaryDirectory() as folder, moto_server() as upstream:
        config = Path(folder, "run.toml")
        values = {**SETTINGS, "data": put_data(upstream, Path(folder, "glyphs"))}
        del values["glyphs"]
        config.write_text(tomli_w.dumps(values))
        result: dict[str, Any] = {"seconds": {}, "requests": {}}
        for name in ("undisturbed",) if arguments.only_count else ("undisturbed", "disturbed"):
            chosen = faults if name == "disturbed" else {}
            with Proxy(upstream, chosen, seed=arguments.seed, latency_s=arguments.latency) as proxy:
                result["seconds"][name] = round(train(proxy.url, config, name), 1)
                result["requests"][name] = {"total": len(proxy.requests), **by_stage(proxy.requests, name)}
                result["faults"] = proxy.counts()
        if not arguments.only_count:
            result["tables equal"] = relevance(upstream, "undisturbed").equals(relevance(upstream, "disturbed"))
        print(json.dumps(result))


if __name__ == "__main__":
    main()
