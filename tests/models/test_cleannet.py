import numpy as np
import pytest
import torch

from cleanscale.errors import DataError
from cleanscale.models.cleannet import CleanNet


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CleanNet(6, reference_widths=(8, 5), query_width=7, embedding=4, transform="none").double().eval()


def slow_class_embedding(model, reference_kD):
    """Eq. 2-4 for one class, one reference at a time."""
    _, first, _, second, _ = model.reference_encoder
    hidden, scores = [], []
    for v in reference_kD:
        h = torch.tanh(second.weight @ torch.tanh(first.weight @ v + first.bias) + second.bias)
        u = torch.tanh(model.attention[0].weight @ h + model.attention[0].bias)
        hidden.append(h)
        scores.append((u @ model.context_H).exp())
    prototype = sum(a / sum(scores) * h for a, h in zip(scores, hidden, strict=True))
    return model.class_layer[0].weight @ prototype + model.class_layer[0].bias


def test_class_embeddings_are_the_paper_s_and_padding_has_no_say(model):
    sets = [torch.randn(3, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)]
    padded_SKD = torch.full((2, 3, 6), 9.0, dtype=torch.float64)
    padded_SKD[0], padded_SKD[1, :1] = sets[0], sets[1]
    real_SK = torch.tensor([[True, True, True], [True, False, False]])
    model.transformed = lambda x: x  # stays in double precision
    embedding_SE, attention_SK = model.embed_classes(padded_SKD, real_SK)
    for embedding_E, reference_kD in zip(embedding_SE, sets, strict=True):
        torch.testing.assert_close(embedding_E, slow_class_embedding(model, reference_kD))
    torch.testing.assert_close(attention_SK.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert (attention_SK[~real_SK] == 0).all()


def test_a_shared_projection_begins_as_the_cosine_to_an_attended_mean():
    model = CleanNet(4, embedding=4, transform="none", shared_projection=True).eval()
    with torch.no_grad():
        for layer in (model.class_layer[0], model.query_encoder[3]):
            layer.weight.zero_()
    model.begin_with_projection(torch.eye(4)[:3])
    set_SKD, real_SK = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    class_SE, attention_SK = model.embed_classes(set_SKD, real_SK)
    expected_SE = torch.einsum("sk,skd->sd", attention_SK, set_SKD) * torch.tensor([1.0, 1, 1, 0])
    torch.testing.assert_close(class_SE, expected_SE)
    torch.testing.assert_close(model.embed_queries(set_SKD[0])[:, :3], set_SKD[0][:, :3])


def test_order_of_references_has_no_say():
    model = CleanNet(6).eval()
    set_SKD = torch.randn(1, 5, 6)
    real_SK = torch.ones(1, 5, dtype=torch.bool)
    one, _ = model.embed_classes(set_SKD, real_SK)
    other, _ = model.embed_classes(set_SKD.flip(1), real_SK)
    torch.testing.assert_close(one, other)


def test_the_query_encoder_is_a_five_layer_autoencoder():
    model = CleanNet(20, query_width=16, embedding=8)
    widths = [layer.out_features for layer in [*model.query_encoder, *model.query_decoder] if hasattr(layer, "weight")]
    assert widths == [16, 8, 16, 20]
    assert model.reconstruct(model.embed_queries(torch.randn(3, 20))).shape == (3, 20)


def test_log1p_is_the_published_transform_and_takes_negative_features():
    model = CleanNet(3, transform="log1p")
    out = model.transformed(torch.tensor([[0.0, 1.5, -1.5]]))
    np.testing.assert_allclose(out, [[0, np.log(2.5), -np.log(2.5)]], rtol=1e-6)


def test_standardised_features_have_deviation_one_and_constant_ones_vanish():
    model = CleanNet(2, transform="standardise")
    model.set_standardisation(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
    np.testing.assert_allclose(model.transformed(torch.tensor([[5.0, 3.0]])), [[2, 0]])


def test_centred_features_keep_their_proportions():
    model = CleanNet(2, transform="centre")
    model.set_standardisation(torch.zeros(2), torch.tensor([7.0, 1.0]))
    np.testing.assert_allclose(model.transformed(torch.tensor([[7.0, 1.0]])), [[1.4, 0.2]], rtol=1e-6)


def test_saved_weights_carry_the_transform_and_the_configuration():
    model = CleanNet(4, embedding=3, activation="relu", transform="standardise").eval()
    model.set_standardisation(torch.randn(4), torch.rand(4) + 1)
    again = CleanNet.from_bytes(model.to_bytes()).eval()
    assert again.config == model.config
    feature_QD = torch.randn(5, 4)
    torch.testing.assert_close(again.embed_queries(feature_QD), model.embed_queries(feature_QD))


@pytest.mark.parametrize("data", [b"", b"not a safetensors file", (2).to_bytes(8, "little") + b"{}"])
def test_another_file_is_no_cleannet(data):
    with pytest.raises(DataError, match="no cleanscale cleannet"):
        CleanNet.from_bytes(data)
