"""figures: curves where the truth is known, and contact sheets of what was found, as PNG in the run folder."""

# pyarrow.compute makes its functions when it is imported, which pyright cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale.datasets.images import UnreadableImage, decode
from cleanscale.engine.tasks import map_shards
from cleanscale.reporting import contact_sheets
from cleanscale.reporting import figures as drawings
from cleanscale.reporting.contact_sheets import AttendedClass, Suspect
from cleanscale.stages.evaluate import Judgements
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.images import encoded
from cleanscale.stages.ingest import TRUTH_NOT_GIVEN, Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.settings import EvaluateSettings
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table

SHOWN_CLASSES, SHOWN_REFERENCES = 8, 5


def run(
    place: Place,
    settings: EvaluateSettings,
    data: Ingested,
    features: FeatureShards,
    relevance: str,
    class_index: str,
    judged: Judgements | None,
    metrics: dict[str, Any],
    main: str,
) -> dict[str, bytes]:
    """Draw everything that the run has material for into figures/; returns the PNGs by name."""
    found: dict[str, bytes] = {}
    if judged is not None and len(judged.label_N):
        decisions, groups = judged.decisions(), judged.groups()
        mislabeled_N = judged.mislabeled[main]
        found["roc.png"] = drawings.roc(judged.wrong_N, decisions, groups, main=main)
        found["precision_recall.png"] = drawings.precision_recall(judged.wrong_N, decisions, groups, main=main)
        found["error_per_class.png"] = drawings.error_per_class(
            judged.label_N, judged.wrong_N, mislabeled_N, held_out_N=judged.held_out_N, name=main
        )
        if main in judged.probability:
            found["reliability.png"] = drawings.reliability(~judged.wrong_N, judged.probability[main], name=main)
    if metrics.get("classification"):
        found["accuracy_by_round.png"] = drawings.accuracy_by_round(metrics["classification"])
    if data.kind == "images":
        found["most_surely_wrong.png"] = wrong_sheet(settings, data, features, relevance)
        found["attended_references.png"] = attended_sheet(data, class_index)
    for name, content in found.items():
        uris.write_bytes(place.path("figures", name), content)
    return found


def wrong_sheet(settings: EvaluateSettings, data: Ingested, features: FeatureShards, relevance: str) -> bytes:
    """The images most surely wrong that nobody has verified."""
    tops = dict(map_shards(least_probable, list(features.shards), relevance, settings.sheet_images))
    table = pa.concat_tables([tops[k][0] for k in sorted(tops)])
    table = table.sort_by([("probability_correct", "ascending"), ("row", "ascending")]).slice(0, settings.sheet_images)
    pictures = read_pictures(data, table["row"].to_numpy())
    name_of, true_label_R = data.label_map().name_of, data.true_labels()
    suspects = []
    for one in table.to_pylist():
        truth, suggested = true_label_R[one["row"]], one["suggested_label"]
        suspects.append(
            Suspect(
                picture=pictures[one["row"]],
                given=name_of(one["label"]),
                suggested=None if suggested is None else name_of(suggested),
                probability_wrong=1 - one["probability_correct"],
                known_wrong=None if truth == TRUTH_NOT_GIVEN else bool(truth != one["label"]),
            )
        )
    return contact_sheets.most_surely_wrong(suspects, of=sum(n for _, n in tops.values()))


def least_probable(shard: Shard, relevance: str, most: int) -> tuple[pa.Table, int]:
    """(the shard's unverified images called wrong that are least probably right, how many are called wrong)."""
    columns = ["row", "label", "probability_correct", "mislabeled", "suggested_label", "verified"]
    table = read_table(uris.join(relevance, f"{shard.name}.parquet"), columns)
    table = table.filter(pc.and_(table["mislabeled"], pc.equal(table["verified"], -1)))
    order = [("probability_correct", "ascending"), ("row", "ascending")]
    return table.sort_by(order).slice(0, most), table.num_rows


def attended_sheet(data: Ingested, class_index: str) -> bytes:
    """For some classes, the references that their embedding attends to most and least (the paper's Figure 3)."""
    first = uris.list_files(class_index, (".parquet",))[0]
    table = read_table(first.uri, ["label", "attention", "nearest_rows"])
    table = table.filter(pc.greater_equal(pc.list_value_length(table["attention"]), 2 * SHOWN_REFERENCES))
    chosen = np.unique(np.linspace(0, table.num_rows - 1, SHOWN_CLASSES).astype(int)) if table.num_rows else []
    picked = table.take(pa.array(chosen, pa.int64())).to_pylist()
    ranked = [(one, np.argsort(one["attention"])) for one in picked]
    wanted = [
        one["nearest_rows"][k] for one, order in ranked for k in (*order[:SHOWN_REFERENCES], *order[-SHOWN_REFERENCES:])
    ]
    pictures = read_pictures(data, np.unique(np.array(wanted, np.int64)))

    def shown(one: dict[str, Any], positions: np.ndarray) -> list[tuple[np.ndarray, float]]:
        return [(pictures[one["nearest_rows"][k]], one["attention"][k]) for k in positions]

    classes = [
        AttendedClass(
            name=data.label_map().name_of(one["label"]),
            most=shown(one, order[::-1][:SHOWN_REFERENCES]),
            least=shown(one, order[:SHOWN_REFERENCES]),
            references=len(one["attention"]),
        )
        for one, order in ranked
    ]
    return contact_sheets.attended_references(classes)


def read_pictures(data: Ingested, row_M: np.ndarray) -> dict[int, np.ndarray]:
    """Decoded images by row; a grey square for one that cannot be decoded."""
    pictures = {int(row): np.full((32, 32, 3), 128, np.uint8) for row in row_M}
    for fragment, rows in data.plan().fragments_of(row_M):
        for row, content in encoded(fragment, data.settings, rows):
            try:
                pictures[row] = decode(content)
            except UnreadableImage:
                continue
    return pictures
