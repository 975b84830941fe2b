"""`find_wrong_labels` on 50,000 x 256 features of 100 classes, as a notebook user calls it. Limit: 30 s on 2 cores.

    python benchmarks/in_memory.py

Generated features: class centres with noise, 40 % of the labels wrong, 250 labels verified in each of 50 classes.
Prints a JSON line with the seconds of wall and processor time, and the error of what was found.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from cleanscale import find_wrong_labels

IMAGES, WIDTH, CLASSES, VERIFIED_CLASSES, PER_CLASS = 50_000, 256, 100, 50, 250


def main() -> int:
    rng = np.random.default_rng(0)
    centre_CD = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    true_N = rng.integers(0, CLASSES, IMAGES)
    feature_ND = centre_CD[true_N] + 3.5 * rng.normal(size=(IMAGES, WIDTH)).astype(np.float32)
    label_N = np.where(rng.random(IMAGES) < 0.4, rng.integers(0, CLASSES, IMAGES), true_N)
    verified_N = np.full(IMAGES, -1)
    for label in range(VERIFIED_CLASSES):
        chosen = rng.choice(np.flatnonzero(label_N == label), PER_CLASS, replace=False)
        verified_N[chosen] = label_N[chosen] == true_N[chosen]
    began, cpu = time.monotonic(), time.process_time()
    table = find_wrong_labels(feature_ND, label_N, verified_N)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    called_N = table["mislabeled"].to_numpy(zero_copy_only=False)
    error = 100 * np.mean((called_N != (label_N != true_N))[verified_N == -1])
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "error": error, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
