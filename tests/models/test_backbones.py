import time

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from cleanscale.errors import ConfigError
from cleanscale.models import backbone_weights
from cleanscale.models.backbones import BackboneSettings, build_backbone

TINY = "test_resnet"


def settings(**values):
    return BackboneSettings(**({"name": TINY, "weights": "", "image_size": 32} | values))


def batch(count=4, size=32, seed=0):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture
def no_network(monkeypatch):
    """The hub switched off and an empty cache, as on a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_features_are_pooled_and_normalised_inside():
    backbone = build_backbone(settings()).eval()
    reference = timm.create_model(TINY, num_classes=0).eval()
    reference.load_state_dict(backbone.network.state_dict())
    image = batch()
    expected = reference((image.float() / 255 - 0.5) / 0.5)
    feature = backbone(image)
    assert feature.shape == (4, backbone.width)
    assert feature.dtype == torch.float32
    torch.testing.assert_close(feature, expected, atol=1e-4, rtol=1e-4)


def test_mean_and_std_are_the_models_own_unless_given():
    assert build_backbone(settings()).mean == (0.5, 0.5, 0.5)
    assert build_backbone(settings(mean=(0.1, 0.2, 0.3))).mean == (0.1, 0.2, 0.3)
    with pytest.raises(ConfigError, match="three numbers"):
        build_backbone(settings(std=(0.5,)))


def test_initial_weights_depend_on_the_seed_alone():
    first, again, other = (build_backbone(settings(), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_torchvision_by_prefix():
    backbone = build_backbone(settings(name="torchvision:resnet18"))
    assert backbone.width == 512
    assert backbone(batch()).shape == (4, 512)


def test_a_transformer_takes_another_image_size():
    assert build_backbone(settings(name="test_vit", image_size=64)).image_size == 64


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ConfigError, match="resnet50"):
        build_backbone(settings(name="resnet5o"))
    with pytest.raises(ConfigError, match="torchvision:resnet18"):
        build_backbone(settings(name="torchvision:resnet1"))


def test_wrong_options_and_sizes_are_the_users_error():
    with pytest.raises(ConfigError, match=r"backbone\.options"):
        build_backbone(settings(options={"colour": 3}))
    with pytest.raises(ConfigError, match="image_size"):
        build_backbone(settings(name="convnext_atto", image_size=8))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "wrapped", "half"])
def test_a_weights_file_with_a_classifier_in_it_loads(tmp_path, kind):
    full = timm.create_model(TINY, num_classes=10)
    path = tmp_path / "weights.bin"
    weight = {key: value.contiguous() for key, value in full.state_dict().items()}
    if kind == "safetensors":
        save_file(weight, path)
    elif kind == "half":
        save_file({key: value.half() for key, value in weight.items()}, path)
    elif kind == "torch":
        torch.save(weight, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weight.items()}}, path)
    loaded = build_backbone(settings(weights=path.as_uri())).network.state_dict()
    assert all(torch.allclose(loaded[key].float(), weight[key].float(), atol=1e-3) for key in loaded)


def test_a_file_of_another_network_says_what_is_missing(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"stem.weight": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match=r"missing .*unexpected \(stem.weight\)"):
        build_backbone(settings(weights=str(path)))


def test_what_is_no_weights_file_is_the_users_error(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not weights")
    with pytest.raises(ConfigError, match="no weights file"):
        build_backbone(settings(weights=str(path)))
    with pytest.raises(ConfigError, match="cannot be read"):
        build_backbone(settings(weights=str(tmp_path / "absent.pt")))


def test_pretrained_without_a_network_ends_within_seconds(no_network):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"--backbone\.weights FILE"):
        build_backbone(settings(name="test_resnet", weights="pretrained", image_size=0))
    assert time.monotonic() - start < 10


def test_an_unreachable_hub_is_noticed_without_its_retries(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with backbone_weights.reachable_or_offline():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_frozen_backbone_keeps_its_statistics_in_training_mode():
    backbone = build_backbone(settings(frozen=True)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    feature = backbone(batch())
    assert not feature.requires_grad
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_bfloat16_features_are_near_to_float32():
    exact = build_backbone(settings(precision="float32")).eval()(batch())
    coarse = build_backbone(settings(precision="bfloat16")).eval()(batch())
    assert coarse.dtype == torch.float32
    assert 0 < (exact - coarse).abs().max() < 0.1 * exact.abs().max()
