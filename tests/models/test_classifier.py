import pytest
import torch

from cleanscale.errors import DataError
from cleanscale.maths.projection import fit_projection
from cleanscale.models.backbones import BackboneSettings, build_backbone
from cleanscale.models.classifier import (
    Classifier,
    FeatureProjection,
    build_classifier,
    classifier_from_bytes,
    classifier_to_bytes,
)
from cleanscale.models.heads import Head

SETTINGS = BackboneSettings(name="test_resnet", weights="", image_size=32)
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden_width", [0, 16])
def test_a_saved_classifier_gives_the_same_logits(hidden_width):
    model = build_classifier(SETTINGS, 7, hidden_width=hidden_width, seed=4).eval()
    again, settings = classifier_from_bytes(classifier_to_bytes(model, SETTINGS))
    assert settings == SETTINGS
    assert torch.equal(again.eval()(IMAGES), model(IMAGES))
    assert model(IMAGES).shape == (3, 7)


def test_loading_downloads_nothing():
    model = build_classifier(SETTINGS, 2)
    pretrained = SETTINGS.model_copy(update={"weights": "pretrained"})
    again, settings = classifier_from_bytes(classifier_to_bytes(model, pretrained))
    assert settings.weights == "pretrained"
    assert torch.equal(again.eval()(IMAGES), model.eval()(IMAGES))


def test_a_saved_classifier_serves_as_backbone_weights(tmp_path):
    model = build_classifier(SETTINGS, 5, seed=1).eval()
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(classifier_to_bytes(model, SETTINGS))
    backbone = build_backbone(SETTINGS.model_copy(update={"weights": str(path)})).eval()
    assert torch.equal(backbone(IMAGES), model.backbone(IMAGES))


def test_other_files_are_refused():
    with pytest.raises(DataError, match="no cleanscale classifier"):
        classifier_from_bytes(b"something else entirely", source="x.bin")


def test_a_projection_inside_the_classifier_does_what_the_features_stage_did():
    model = build_classifier(SETTINGS, 4)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    model.eval()
    with torch.inference_mode():
        feature_BD = model.backbone(images)
    project = fit_projection(feature_BD.numpy(), 3)
    head = Head(3, 4).eval()
    whole = Classifier(model.backbone, head, FeatureProjection(torch.from_numpy(project.to_array())))
    loaded, _ = classifier_from_bytes(classifier_to_bytes(whole, SETTINGS))
    with torch.inference_mode():
        expected = head(torch.from_numpy(project(feature_BD.numpy())))
        torch.testing.assert_close(loaded.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_a_backbone_learns_through_a_projection_also_from_features_of_0():
    """In float64, against the quotient of differences; at 0 the square root's own slope is infinite."""
    project = FeatureProjection(torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    feature_BD = torch.tensor([[0.0, 1.0, 2.0, -3.0, 1e-9]], dtype=torch.float64, requires_grad=True)
    project(feature_BD).sum().backward()
    gradient_D = feature_BD.grad[0]
    for at in (1, 2, 3):
        step_BD = 1e-6 * torch.nn.functional.one_hot(torch.tensor([at]), 5)
        with torch.no_grad():
            change = (project(feature_BD + step_BD) - project(feature_BD - step_BD)).sum() / 2e-6
        torch.testing.assert_close(gradient_D[at], change, rtol=1e-6, atol=1e-8)
    assert gradient_D.isfinite().all()
    assert gradient_D.abs().max() < 1000
