import numpy as np
import pyarrow as pa
import torch

from cleanscale.classifiers import Inputs, Trained, fine_tune_on_clean
from cleanscale.config import Settings
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.settings import EngineSettings
from cleanscale.maths.projection import fit_projection
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import Classifier, FeatureProjection, build_classifier, classifier_to_bytes
from cleanscale.models.heads import Head
from cleanscale.reporting.progress import Progress
from cleanscale.stages import classifier, predictions
from cleanscale.stages.feature_files import fixed_size
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.features import PROJECTION
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.arrays import write_array
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import write_table

BACKBONE = BackboneSettings(name="test_resnet", weights="", image_size=32)


def test_a_classifier_behind_a_projection_predicts_behind_it_once_it_is_fine_tuned(tmp_path, monkeypatch):
    """label_cleaning's, after one round; what fine-tuning leaves is the network that it began with."""
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = build_classifier(BACKBONE, 1).backbone.eval()
    with torch.inference_mode():
        feature_ND = backbone(images).numpy().astype(np.float16)
    project = fit_projection(feature_ND, 8)
    write_array(str(tmp_path / "features" / PROJECTION), project.to_array())
    network = Classifier(backbone, Head(8, 3), FeatureProjection(torch.from_numpy(project.to_array()))).eval()
    shard = Shard(index=0, label_start=0, label_stop=3, part=0, parts=1, rows=12)
    columns = {"row": np.arange(12), "label": np.zeros(12, np.int32), "feature": fixed_size(feature_ND)}
    write_table(str(tmp_path / "test" / f"{shard.name}.parquet"), pa.table(columns))

    def fine_tune(_, folder, *__, start, **___):
        assert start == ("last", "made")
        stage = open_stage(folder, "classifier_clean", {}, {})
        uris.write_bytes(stage.path(classifier.MODEL), classifier_to_bytes(network, BACKBONE))
        return stage.finish()

    monkeypatch.setattr(classifier, "run", fine_tune)
    place = Place(str(tmp_path / "run"), 0, EngineSettings(), Progress())
    clean = Ingested("clean", "", Settings().data, "images", 9, 9, 3, ((0, 9),), None, "")
    final = Trained(("last", "made"), ("backbone", "made"), str(tmp_path / "features"))
    tuned = fine_tune_on_clean(Settings(), place, Inputs(clean, None, clean), final)
    assert tuned.backbone == tuned.made  # the features of test images come from it, as its backbone gives them
    with in_this_process(Here()):
        shards = FeatureShards(str(tmp_path / "test"), "f", feature_ND.shape[1], (shard,))
        found = predictions.run(place, place.path("predictions"), shards, tuned.made, tuned.projection)
    with torch.inference_mode():
        assert found.predicted_NK[:, 0].tolist() == network(images).argmax(1).tolist()
