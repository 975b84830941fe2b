"""The class index against comparing all classes, in one run: queries per second at the same recall of the ten nearest.

    python benchmarks/index.py [--classes 1000000] [--width 128] [--recall 0.8] [--shards 1 4]

`clustered`: class embeddings as a run has them: centres of groups of 1000 classes on average (sizes by Zipf's law),
classes around them at 0.7 of the centres' spread, a spectrum that falls as 1 / sqrt(dimension); a query is an image:
its class plus noise of the same size. `uniform`: both uniform on the sphere, which no index can do much about.

One process and one thread do all of it. For each data set and number of shards the index is made as in a run (one
quantiser from a sample; as many cells probed as the recall takes), then both ways answer the same queries by turns.
Prints JSON lines: queries per second of one core's time (median of repeats and their range), recall, how many times as
fast the index is, and what it takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from cleanscale.maths import class_search
from cleanscale.maths.class_search import RangeIndex, merged, probed_lists

ANSWERS = 10
Answer = Callable[[np.ndarray], np.ndarray]


def unit(vector_XE: np.ndarray) -> np.ndarray:
    return (vector_XE / np.linalg.norm(vector_XE, axis=1, keepdims=True)).astype(np.float32)


def clustered(classes: int, width: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [C, E], float32 [Q, E])"""
    rng = np.random.default_rng(0)
    scale_E = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    groups = max(1, classes // 1000)
    share_G = 1 / np.arange(1, groups + 1)
    centre_GE = rng.standard_normal((groups, width), np.float32) * scale_E
    vector_CE = centre_GE[rng.choice(groups, classes, p=share_G / share_G.sum())]
    vector_CE += 0.7 * rng.standard_normal((classes, width), np.float32) * scale_E
    noise_QE = 0.7 * rng.standard_normal((queries, width), np.float32) * scale_E
    return unit(vector_CE), unit(vector_CE[rng.integers(0, classes, queries)] + noise_QE)


def uniform(classes: int, width: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return unit(rng.standard_normal((classes, width), np.float32)), unit(rng.standard_normal((queries, width)))


class Searched:
    """An index over ranges of classes, as its actors have it, in this process."""

    def __init__(self, vector_CE: np.ndarray, trained: faiss.IndexIVF, shards: int) -> None:
        self.trained, self.probes = trained, 1
        self.codes_bytes = 0
        self.ranges = []
        for label_C in np.array_split(np.arange(len(vector_CE)), shards):
            codes = class_search.filled(trained, vector_CE[label_C[0] : label_C[-1] + 1])
            self.codes_bytes += len(faiss.serialize_index(codes))
            self.ranges.append(RangeIndex(label_C, vector_CE[label_C[0] : label_C[-1] + 1], codes))

    def __call__(self, query_QE: np.ndarray) -> np.ndarray:
        lists = probed_lists(self.trained, query_QE, self.probes)
        most = class_search.REFINED * ANSWERS
        return merged([r.search(query_QE, lists, most) for r in self.ranges], most).best(ANSWERS)[0]

    def tune(self, query_QE: np.ndarray, true_QK: np.ndarray, target: float) -> None:
        for probes in class_search.tried_probes(self.trained.nlist):
            self.probes = probes
            if class_search.recall(self(query_QE), true_QK) >= target:
                return


def timed(answer: Answer, query_QE: np.ndarray) -> float:
    """Queries per second of this process's time."""
    started = time.process_time()
    answer(query_QE)
    return len(query_QE) / (time.process_time() - started)


def compare(vector_CE: np.ndarray, query_QE: np.ndarray, args: argparse.Namespace, data: str) -> None:
    flat = faiss.IndexFlatIP(vector_CE.shape[1])
    flat.add(vector_CE)
    tuning_QE, query_QE = np.split(query_QE, [args.queries // 4])
    truth = {id(q): flat.search(q, ANSWERS)[1] for q in (tuning_QE, query_QE)}
    started = time.process_time()
    sample_C = class_search.training_sample(0, np.arange(len(vector_CE)), len(vector_CE))
    trained = class_search.train(vector_CE[sample_C], class_search.lists_for(len(vector_CE)), seed=0)
    training_s = time.process_time() - started
    before: np.ndarray | None = None
    for shards in args.shards:
        started = time.process_time()
        index = Searched(vector_CE, trained, shards)
        filling_s = time.process_time() - started
        index.tune(tuning_QE, truth[id(tuning_QE)], args.recall)
        found_QK = index(query_QE)
        rates: dict[str, list[float]] = {"flat": [], "index": []}
        for _ in range(args.repeats):
            rates["flat"].append(timed(lambda q: flat.search(q, ANSWERS)[1], query_QE))
            rates["index"].append(timed(index, query_QE))
        ratios = [fast / slow for fast, slow in zip(rates["index"], rates["flat"], strict=True)]
        row = {
            "data": data,
            "classes": len(vector_CE),
            "width": vector_CE.shape[1],
            "shards": shards,
            "lists": trained.nlist,
            "probes": index.probes,
            "recall": round(class_search.recall(found_QK, truth[id(query_QE)]), 4),
            "queries_per_second": {n: round(statistics.median(r), 1) for n, r in rates.items()},
            "range": {n: [round(min(r), 1), round(max(r), 1)] for n, r in rates.items()},
            "index_is_times_as_fast": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "same_answers_as_before": None if before is None else bool((found_QK == before).all()),
            "training_seconds": round(training_s, 1),
            "filling_seconds": round(filling_s, 1),
            "codes_bytes": index.codes_bytes,
            "vectors_bytes": vector_CE.nbytes,
        }
        before = found_QK
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--recall", type=float, default=0.8, help="of the ten nearest classes, to be reached")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--data", nargs="+", default=["clustered", "uniform"], choices=["clustered", "uniform"])
    parser.add_argument("--queries", type=int, default=2048, help="a quarter of them choose the cells to probe")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        for data in args.data:
            made = {"clustered": clustered, "uniform": uniform}[data]
            compare(*made(args.classes, args.width, args.queries), args, data)


if __name__ == "__main__":
    main()
