"""outcome: after each round metrics.json, the flat relevance table and rejected rows; after a run, figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards
from cleanscale.reporting.terminal import Summary
from cleanscale.stages import duplicate_classes, evaluate, open_set, overview
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.predictions import Predictions
from cleanscale.stages.settings import EvaluateSettings
from cleanscale.storage import uris
from cleanscale.storage.manifests import defined, write_json
from cleanscale.storage.tables import read_table, write_table


def run(
    place: Place,
    data: Ingested,
    features: FeatureShards,
    relevance: str,
    predicted: dict[str, Predictions],
    settings: EvaluateSettings,
    *,
    detector: str,
    class_index: str,
    evidence: str,
    versions: dict[str, str],
    newest_round: int,
    parts: Sequence[str],
    earlier: Summary | None,
    draw: bool,
) -> Summary:
    """Measure, publish, and say what the terminal shows.

    predicted: of each classifier so far, on the test set. parts: the inputs that there are (train, test, clean).
    earlier: the outcome when this judgement was new; None when it is new now.
    """
    judged = evaluate.judgements(relevance, features, data, settings.images, place.seed)
    known = earlier.metrics if earlier else None
    numbers = evaluate.metrics(place, settings, judged, predicted, detector, earlier=known)
    if earlier is None:
        publish(place, relevance, "relevance", features)
        publish(place, uris.join(relevance, open_set.FOLDER), open_set.FOLDER, features)
        overview.run(place, data, features, relevance, judged, detector)
        duplicate_classes.run(place, data, features, class_index, evidence)
    rejected = gather_rejected(place, parts)
    if draw:
        from cleanscale.stages import figures

        with place.timed("figures"):
            figures.run(place, settings, data, features, relevance, class_index, judged, numbers, detector)
    numbers = defined(numbers | measurements(place, newest_round) | {"rejected": rejected, "versions": versions})
    write_json(place.path("metrics.json"), numbers)
    return Summary(
        title=place.uri.rstrip("/").rsplit("/", 1)[-1],
        found=evaluate.count_found(relevance, features),
        class_names=data.label_map().names,
        metrics=numbers,
        detector=detector,
        rejected=rejected,
        places={
            "relevance table": place.path("relevance"),
            "metrics": place.path("metrics.json"),
            "classes": place.path(overview.PER_CLASS),
            "classes twice": place.path(duplicate_classes.TABLE),
            "of no class": place.path(open_set.FOLDER),
            "figures": place.path("figures"),
            "rejected rows": place.path("rejected.parquet"),
        },
        seconds=time.monotonic() - place.started,
    )


def measurements(place: Place, newest_round: int) -> dict[str, Any]:
    """What the stages took, whichever invocation did them; total and memory are those of this one."""
    seconds, images = place.took(newest_round)
    rates = {n: round(k / seconds[n], 1) for n, k in images.items() if k and seconds[n] > 0}
    return {
        "seconds": {n: round(s, 2) for n, s in seconds.items()} | {"total": round(time.monotonic() - place.started, 2)},
        "images_per_second": rates,
        "peak_memory_bytes": {"driver": place.memory.driver, "all_processes_pss": place.memory.total},
    }


def publish(place: Place, folder: str, name: str, features: FeatureShards) -> None:
    """The newest tables of a stage's folder in the folder `name` of the run, flat. Files of older ones go last."""
    names = [f"{shard.name}.parquet" for shard in features.shards]
    for _ in map_shards(copy_file, names, folder, place.path(name)):
        pass
    for file in uris.list_files(place.path(name), (".parquet",)):
        if file.path not in names:
            uris.remove_tree(file.uri)


def copy_file(name: str, source: str, target: str) -> None:
    uris.write_bytes(uris.join(target, name), uris.read_bytes(uris.join(source, name)))


def gather_rejected(place: Place, parts: Sequence[str]) -> dict[str, int]:
    """rejected.parquet of the run, and how many rows for each reason."""
    # Each round's features meet the same unreadable images: those of the first tell. An input that an earlier
    # invocation had and this one has not is no part of the run any more, though its stage is still there.
    homes = ("rounds/00/", *(f"{stage}/{part}/" for stage in ("ingest", "cache") for part in parts))
    found = [f for f in uris.list_files(place.uri, ("rejected.parquet",)) if f.path.startswith(homes)]
    found = [f for f in found if "test" in parts or "_test_features/" not in f.path]
    tables = [read_table(f.uri) for f in found]
    table = pa.concat_tables(tables)
    write_table(place.path("rejected.parquet"), table)
    # "unreadable image: truncated file" counts as an unreadable image; the table has the whole reason.
    kinds = np.array([reason.split(":")[0] for reason in table["reason"].to_pylist()], dtype=str)
    names, counts = np.unique(kinds, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
