"""k-means of many small classes: Gram-matrix Lloyd against faiss.Kmeans and scikit-learn, one thread each.

    python benchmarks/references.py [--features features.npy --labels labels.npy]

Prints JSON lines: classes per second of one core's time (median of interleaved repeats, with their range), inertia
relative to the better of the two others, and the ratio of speeds. Without features, classes are mixtures of clusters of
generated features.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cleanscale.maths.references import make_references


def generated(classes: int, images: int, width: int) -> np.ndarray:
    """[C, n, D] float32: every class is a mixture of 8 clusters, with a spectrum that falls like real features'."""
    rng = np.random.default_rng(0)
    scale_D = np.arange(1, width + 1) ** -0.5
    centre_CXD = rng.normal(size=(classes, 8, width)) * scale_D
    cluster_Cn = rng.integers(0, 8, (classes, images))
    noise_CnD = rng.normal(size=(classes, images, width)) * scale_D
    return (np.take_along_axis(centre_CXD, cluster_Cn[:, :, None], 1) + noise_CnD).astype(np.float32)


def loaded(features: str, labels: str, images: int, width: int) -> np.ndarray:
    """[C, n, D] float32: principal components of the first n images of every class that has so many."""
    feature_ND, label_N = np.load(features).astype(np.float32), np.load(labels)
    feature_ND -= feature_ND.mean(axis=0)
    _, vector_DD = np.linalg.eigh(feature_ND.T @ feature_ND)
    component_ND = feature_ND @ vector_DD[:, ::-1][:, :width]
    classes = [np.flatnonzero(label_N == c)[:images] for c in np.unique(label_N)]
    return np.stack([component_ND[c] for c in classes if len(c) == images])


def inertia(point_CnD: np.ndarray, centre_CkD: list[np.ndarray]) -> float:
    total = 0.0
    for point_nD, centre_kD in zip(point_CnD, centre_CkD, strict=True):
        square_nk = np.square(point_nD).sum(axis=1)[:, None] - 2 * point_nD @ centre_kD.T
        total += float((square_nk + np.square(centre_kD).sum(axis=1)).min(axis=1).sum())
    return total


def contenders(point_CnD: np.ndarray, per_class: int, iterations: int) -> dict[str, Callable[[], list[np.ndarray]]]:
    classes, images, width = point_CnD.shape
    feature_ND, label_N = point_CnD.reshape(-1, width), np.repeat(np.arange(classes, dtype=np.int32), images)

    def ours() -> list[np.ndarray]:
        rows = np.arange(len(label_N))
        made = make_references(feature_ND, label_N, rows, per_class=per_class, iterations=iterations, seed=0)
        return np.split(made.vector_MD, made.offset_C1[1:-1])

    def with_faiss() -> list[np.ndarray]:
        centres = []
        for c, point_nD in enumerate(point_CnD):
            fit = faiss.Kmeans(width, per_class, niter=iterations, seed=c + 1, min_points_per_centroid=1)
            fit.train(point_nD)
            centres.append(fit.centroids)
        return centres

    def with_sklearn() -> list[np.ndarray]:
        fits = [KMeans(per_class, n_init=1, max_iter=iterations, random_state=c) for c in range(classes)]
        return [fit.fit(point_nD).cluster_centers_ for fit, point_nD in zip(fits, point_CnD, strict=True)]

    return {"gram_lloyd": ours, "faiss_kmeans": with_faiss, "sklearn_kmeans": with_sklearn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", help="npy file [N, D]; default: generated")
    parser.add_argument("--labels", help="npy file [N]")
    parser.add_argument("--classes", type=int, default=80, help="generated classes")
    parser.add_argument("--images", type=int, default=300, help="images per class")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        if args.features:
            point_CnD = loaded(args.features, args.labels, args.images, args.width)
        else:
            point_CnD = generated(args.classes, args.images, args.width)
        methods = contenders(point_CnD, args.per_class, args.iterations)
        rates: dict[str, list[float]] = {name: [] for name in methods}
        within = {name: inertia(point_CnD, method()) for name, method in methods.items()}  # also warms up
        for _ in range(args.repeats):
            for name, method in methods.items():
                started = time.process_time()
                method()
                rates[name].append(len(point_CnD) / (time.process_time() - started))
    best = min(within["faiss_kmeans"], within["sklearn_kmeans"])
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["gram_lloyd"], values, strict=True)]
        row = {
            "method": name,
            "classes": len(point_CnD),
            "classes_per_second": round(statistics.median(values), 1),
            "range": [round(min(values), 1), round(max(values), 1)],
            "inertia_to_best_other": round(within[name] / best, 4),
            "gram_lloyd_is_times_as_fast": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
