"""A run folder that is read once more: where its classifier, features and detector lie, without doing any stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cleanscale import config
from cleanscale.config import Settings
from cleanscale.datasets.generated import GENERATED
from cleanscale.datasets.glyphs import EMBEDDED
from cleanscale.errors import ConfigError, DataError
from cleanscale.stages import cache, generated, glyphs, ingest
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, read_json, read_manifest
from cleanscale.storage.tables import read_table

CLEAN = "fine_tuned_on_clean"


@dataclass(frozen=True)
class FinishedRun:
    """uri: the run folder, absolute where it is local. classifier: a name of metrics.json, such as round_1."""

    uri: str
    settings: Settings
    classifier: str

    @classmethod
    def open(cls, uri: str, classifier: str | None = None) -> FinishedRun:
        """Raises: DataError for a folder that is no run, or one that has not come to its end."""
        uri = absolute(uri)
        if not uris.exists(uris.join(uri, "settings.toml")):
            raise DataError(
                f"'{uri}' holds no settings.toml; expected the folder of a finished run; "
                "name the --run.uri of the training, or run `cleanscale train` first"
            )
        settings = config.validate(config.read_toml(uris.join(uri, "settings.toml")))
        run = cls(uri, settings, classifier or f"round_{settings.run.rounds}")
        known = [f"round_{number}" for number in range(settings.run.rounds + 1)] + [CLEAN]
        if run.classifier not in known:
            raise ConfigError(f"--classifier is {run.classifier!r}; expected one of {', '.join(known)}; correct it")
        if uris.exists(run.path("ingest", "train", "manifest.json")) and run.ingested("train").multi_label:
            raise ConfigError(
                f"the labels of '{uri}' are lists; expected a run with one label per image, which is what registered "
                "models answer with; take its classifier from rounds/01/classifier/model.safetensors"
            )
        for folder in (run.classifier_folder, run.round_path(run.last_round, "relevance")):
            run.manifest(folder)
        if not uris.exists(run.path("metrics.json")):
            raise DataError(f"'{uri}' has no metrics.json; expected a finished run; run the training to its end")
        return run

    def path(self, *parts: str) -> str:
        return uris.join(self.uri, *parts)

    def round_path(self, number: int, *parts: str) -> str:
        return self.path("rounds", f"{number:02d}", *parts)

    def manifest(self, folder: str) -> Manifest:
        found = read_manifest(folder)
        if found is None:
            raise DataError(
                f"'{folder}' is not complete; expected a finished run (or another --classifier); run the same training "
                "command again, it goes on where it stopped"
            )
        return found

    # ---- what the run read -------------------------------------------------------------------------------------------

    def ingested(self, name: str) -> Ingested:
        """train or test, as the stages read it: from resized copies where the run made them."""
        data = self.settings.data
        if data.train == EMBEDDED:
            data = data.model_copy(update=glyphs.places(self.path("glyphs"), self.settings.glyphs))
        if data.train == GENERATED:
            data = data.model_copy(update=generated.places(self.path("generated"), self.settings.generated))
        found = ingest.read(self.path("ingest", name), data)
        copies = self.path("cache", name)
        if data.cache_size is None or read_manifest(copies) is None:
            return found
        return cache.reading_copies(copies, found, data.cache_size)

    @property
    def tests(self) -> bool:
        """Whether the run has a test set."""
        return read_manifest(self.path("ingest", "test")) is not None

    def test_files(self) -> str:
        """Fingerprint of the test files alone, whatever was trained on; "none" without a test set."""
        manifest = read_manifest(self.path("ingest", "test"))
        return "none" if manifest is None else manifest.key["inputs"]["data"]

    @property
    def kind(self) -> str:
        """images or features"""
        return json.loads(uris.read_bytes(self.path("ingest", "train", "ingested.json")))["kind"]

    # ---- what the run made -------------------------------------------------------------------------------------------

    @property
    def rounds(self) -> int:
        return self.settings.run.rounds

    @property
    def last_round(self) -> int:
        """The round whose relevance table is the run's."""
        return self.rounds - 1

    @property
    def classifier_folder(self) -> str:
        if self.classifier == CLEAN:
            return self.round_path(self.rounds, "classifier_clean")
        return self.round_path(int(self.classifier.removeprefix("round_")), "classifier")

    @property
    def feature_round(self) -> int:
        """The round whose features the last judgement is made from; later rounds keep them (pipeline.on_features)."""
        same = self.kind == "features" or self.settings.backbone.frozen
        return 0 if same else min(self.last_round, 1)

    @property
    def backbone_folder(self) -> str:
        """Of the classifier file whose backbone made the features."""
        if self.settings.backbone.frozen:
            return self.round_path(0, "backbone")
        return self.round_path(self.feature_round, "classifier")

    def features(self) -> FeatureShards:
        folder = self.round_path(self.feature_round, "features")
        return FeatureShards.of(folder, self.manifest(folder))

    def test_predictions(self) -> pa.Table:
        """row, label, predicted (best first) of the test images, by row, as the job wrote it."""
        folder = self.classifier_folder + "_test_predictions"
        shards = self.manifest(folder).shards
        return pa.concat_tables([read_table(uris.join(folder, s["file"])) for s in shards]).sort_by("row")

    def metrics(self) -> dict:
        return read_json(self.path("metrics.json"))

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]


def absolute(uri: str) -> str:
    """The same run is the same URI from wherever it is named."""
    return str(Path(uri.removeprefix("file://")).resolve()) if uris.is_local(uri) else uri.rstrip("/")


def predicted_array(table: pa.Table) -> np.ndarray:
    """int [N, K] of the column `predicted`."""
    return table["predicted"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
