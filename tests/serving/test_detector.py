import numpy as np
import torch

from cleanscale.maths.class_embeddings import ClassEmbeddings
from cleanscale.models.heads import Head
from cleanscale.serving.detector import KnownClasses, MeanHead, as_text


def test_the_mean_head_gives_the_mean_of_the_heads_logits():
    for hidden in (0, 6):
        heads = [Head(4, 5, hidden_width=hidden) for _ in range(3)]
        feature_ND = torch.randn(7, 4)
        with torch.no_grad():
            mean_NC = torch.stack([head(feature_ND) for head in heads]).mean(dim=0).numpy()
        mean = MeanHead.of([head.frozen() for head in heads])
        found_NC = mean.embed(feature_ND.numpy()) @ mean.weight_CH.T + mean.bias_C
        np.testing.assert_allclose(found_NC, mean_NC, atol=1e-5)


def test_candidates_are_the_classes_whose_mean_reference_is_nearest():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((50, 8)).astype(np.float32)
    labels = np.arange(50) * 2
    nothing = np.empty(0, np.float32)
    known = KnownClasses(ClassEmbeddings(labels, nothing), nothing, nothing, nothing, labels, means)
    feature_XD = 3 * means[[4, 9]] + 0.01
    nearest_XM = known.nearest(feature_XD, 10)
    assert nearest_XM.shape == (2, 10)
    cosine_XC = feature_XD @ means.T / np.linalg.norm(means, axis=1)
    for x in range(2):
        assert set(nearest_XM[x]) == set(labels[np.argsort(-cosine_XC[x])[:10]])
    np.testing.assert_allclose(known.reference_cosine(feature_XD, labels[[4, 9]]), 1, atol=1e-3)


def test_numbers_are_one_label_however_a_table_holds_them():
    assert [as_text(label) for label in (12, 12.0, np.float64(12), "12", "cat")] == ["12", "12", "12", "12", "cat"]
