"""What a run costs by the number of classes: the same command on generated features of 1,000 to 1,000,000 classes.

    python benchmarks/label_space.py --classes 1000 100000 1000000 [--images N] [--detector transfer|cleannet]
                                     [--folder runs/label_space] [--keep] [--section.setting value ...]

20 images per class on average, or --images in all; 128-d features, class sizes after Zipf's law, classes without
images. Prints one JSON line per size: seconds per image of each stage, memory, disk, and errors in classes that nobody
verified. `cpu_seconds` is the processor time of the stages of round 0, which other work on the machine hardly changes.
Each size is a run in a folder of its own below --folder, by `python -m cleanscale.train`; other arguments are settings
of it. Interrupted (SIGTERM interrupts the run too), the same command goes on where it was; a size that is done is
printed again. Run folders are removed when they are done, unless --keep; what was measured stays.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cleanscale.engine.memory import Sampler, descendants
from cleanscale.stages.place import TIME
from cleanscale.storage.manifests import read_json, write_json

ROOT = Path(__file__).parents[1]
SAMPLE_S = 5.0
IMAGES_PER_CLASS = 20


class Watch(Sampler):
    """Looks now and then at the bytes in a folder and at the processor time of all that this process has started.

    attempts: file of what all attempts of a command have in common; one that is killed leaves its peak there.
    """

    def __init__(self, folder: Path, attempts: Path, asked: list[str]) -> None:
        super().__init__(SAMPLE_S)
        self.folder, self.attempts, self.asked = folder, attempts, asked
        kept = read_json(str(attempts)) or {}
        same = kept.get("command") == asked
        self.begun = 1 + (kept["begun"] if same else 0)
        self.peak_disk: int = kept["peak_disk_bytes"] if same else 0
        self.keep()
        self.seen: dict[int, float] = {}  # by process; one that has ended keeps what it had when last seen
        self.times: list[tuple[float, float]] = []  # (seconds since the epoch, processor seconds of all until then)

    def look(self) -> None:
        if (disk := disk_bytes(self.folder)) > self.peak_disk:
            self.peak_disk = disk
            self.keep()
        for pid in descendants(os.getpid()):
            self.seen[pid] = max(cpu_seconds(pid), self.seen.get(pid, 0.0))
        self.times.append((time.time(), sum(self.seen.values())))

    def keep(self) -> None:
        kept = {"command": self.asked, "begun": self.begun, "peak_disk_bytes": self.peak_disk}
        write_json(str(self.attempts), kept)

    def between(self, start: float, stop: float) -> float:
        """Processor seconds between two times, those between two looks in proportion."""
        at, spent = zip(*self.times, strict=True)
        low, high = np.interp([start, stop], at, spent)
        return float(high - low)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds; what it had is lost when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def disk_bytes(folder: Path) -> int:
    """Bytes allocated below a folder; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue
    return total


def command(run: Path, classes: int, images: int, options: argparse.Namespace, settings: list[str]) -> list[str]:
    """The main job on generated features."""
    fixed = {
        "data.train": "generated",
        "generated.classes": classes,
        "generated.images": images,
        "generated.zipf": options.zipf,
        "detector.name": options.detector,
        "run.uri": run,
        "run.seed": options.seed,
        "evaluate.figures": "false",
        "tracking.enabled": "false",
    }
    named = [piece for name, value in fixed.items() for piece in (f"--{name}", str(value))]
    return [sys.executable, "-m", "cleanscale.train", *named, *settings]


def measure(classes: int, images: int, options: argparse.Namespace, settings: list[str]) -> dict[str, Any]:
    """One size: the run, and what is to be told of it. Raises CalledProcessError when the run fails."""
    name = f"{classes}-{images}-{options.detector}-{options.seed}"
    folder = Path(options.folder).resolve() / name
    line, attempts = folder.with_suffix(".json"), folder.with_suffix(".attempts")
    asked = command(folder, classes, images, options, settings)
    kept = json.loads(line.read_text()) if line.exists() else {}
    if kept.get("command") == asked[1:]:
        return kept["measured"]
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with Watch(folder, attempts, asked[1:]) as watch:
        run_to_its_end(asked)
    seconds = time.monotonic() - started
    found = told(folder, classes, images, options.detector)
    cpu = cpu_of_stages(folder, watch)
    found |= {"cpu_seconds": cpu, "cpu_seconds_per_image": {name: value / images for name, value in cpu.items()}}
    found |= {
        "seconds_of_command": round(seconds, 1),
        "peak_disk_bytes": max(watch.peak_disk, found["disk_bytes"]),
        "times_begun": watch.begun,  # more than one: seconds of stages are of all, memory peaks of the last
    }
    line.write_text(json.dumps({"command": asked[1:], "measured": found}))
    attempts.unlink()
    if not options.keep:
        shutil.rmtree(folder)
    return found


def run_to_its_end(asked: list[str]) -> None:
    """A run that does not outlive this process: a terminal interrupts both, and SIGTERM is passed on.

    Raises: CalledProcessError when the run fails.
    """
    child = subprocess.Popen(asked, cwd=ROOT, stdout=sys.stderr)
    try:
        status = child.wait()
    except SystemExit:
        child.terminate()
        raise
    finally:
        child.wait()
    if status:
        raise subprocess.CalledProcessError(status, asked)


def stop(number: int, _: object) -> None:
    sys.exit(128 + number)


def told(folder: Path, classes: int, images: int, detector: str) -> dict[str, Any]:
    """What a finished run says of itself."""
    metrics = json.loads((folder / "metrics.json").read_text())
    seconds = {name: value for name, value in metrics["seconds"].items() if name != "total"}

    def error(name: str) -> float | None:
        measured = metrics["detection"].get(name, {}).get("error_per_class", {}).get("held_out_classes")
        return None if measured is None else round(measured["value"], 2)

    top1 = {name: round(by["top1"]["value"], 2) for name, by in metrics.get("classification", {}).items()}
    memory = metrics["peak_memory_bytes"]
    return {
        "classes": classes,
        "images": images,
        "detector": detector,
        "seconds_per_image": {name: value / images for name, value in seconds.items()},
        "seconds": seconds,
        "seconds_total": round(sum(seconds.values()), 1),
        "peak_driver_bytes": memory["driver"],
        "peak_total_pss_bytes": memory["all_processes_pss"],
        "disk_bytes": disk_bytes(folder),
        "held_out_error": error(detector),
        "filtering_error": error("classification_filtering"),
        "naive_error": error("naive"),
        "top1": top1,
        "head_epochs": {  # of the out-of-fold heads each, over the images of the other folds
            name: notes(folder, stage, "settings", "heads", "epochs")
            for name, stage in (
                ("classifier", "00/classifier"),
                ("out_of_fold", "00/evidence"),
                ("weighted_classifier", "01/classifier"),
            )
        },
        "row_folds": notes(folder, "00/evidence", "settings", "evidence", "row_folds"),
        "cleannet_steps": cleannet_steps(folder),
    }


def cpu_of_stages(folder: Path, watch: Watch) -> dict[str, float]:
    """Processor seconds of the stages of round 0 that this command ran whole."""
    found = {}
    for stage in (folder / "rounds" / "00").iterdir():
        times = stage / TIME
        if times.exists():
            took = sum(of["seconds"] for of in json.loads(times.read_text()).values())
            done = times.stat().st_mtime
            if watch.times[0][0] <= done - took:
                found[stage.name] = round(watch.between(done - took, done), 1)
    return found


def notes(folder: Path, stage: str, *names: str) -> Any:
    """A value of what a stage was made from."""
    found = json.loads((folder / "rounds" / stage / "manifest.json").read_text())["key"]
    for name in names:
        found = found[name]
    return found


def cleannet_steps(folder: Path) -> int:
    """Optimiser steps of all fits: the one without verification labels, the folds and the last one."""
    asked = notes(folder, "00/cleannet", "settings", "cleannet")
    return asked["start_steps"] + (asked["class_folds"] + 1) * asked["steps"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--images", type=int, default=None, help="in all, instead of 20 for each class")
    parser.add_argument("--detector", choices=("transfer", "cleannet"), default="transfer")
    parser.add_argument("--zipf", type=float, default=0.5, help="exponent of the class sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="runs/label_space")
    parser.add_argument("--keep", action="store_true", help="keep the run folders")
    options, settings = parser.parse_known_args()
    signal.signal(signal.SIGTERM, stop)
    for classes in options.classes:
        images = options.images or IMAGES_PER_CLASS * classes
        sys.stderr.write(f"label_space: {classes:,} classes, {images:,} images\n")
        try:
            print(json.dumps(measure(classes, images, options, settings)), flush=True)
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"label_space: {classes:,} classes failed with exit status {error.returncode}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
