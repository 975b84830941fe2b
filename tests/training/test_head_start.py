import numpy as np
import torch

from cleanscale.training.collectives import Alone
from cleanscale.training.head_start import Layers, Rows, _Probe, _probed, class_means, standardise
from cleanscale.training.streamed_features import StreamedFeatures

CLASSES, WIDTH, IMAGES = 7, 4, 60


def test_small_weights_count_in_a_class_that_has_much_already():
    """In float32 a million and more of them were lost beside 2^24."""
    label_N = np.zeros(1001, np.int64)
    weight_N = np.r_[2.0**24, np.ones(1000)].astype(np.float32)
    feature_ND = np.random.default_rng(0).standard_normal((1001, WIDTH)).astype(np.float32)
    data = StreamedFeatures(feature_ND, label_N, weight_N, np.ones(1001, bool))
    layers = Layers(WIDTH, 0, 0.0).eval()
    standardise(layers, data, Alone())
    assert class_means(layers, data, 2, Alone()).weight_R.tolist() == [2.0**24 + 1000, 0]


def test_an_image_is_compared_with_its_class_without_its_own_weight():
    """The scale of the first rows is chosen by images that have no part in the mean that they are compared with."""
    rng = np.random.default_rng(0)
    feature_ND = rng.standard_normal((IMAGES, WIDTH)).astype(np.float32)
    label_N = np.sort(rng.integers(0, CLASSES - 1, IMAGES))
    label_N[-1] = CLASSES - 1  # alone in its class
    weight_N = rng.uniform(0.05, 2.0, IMAGES).astype(np.float32)
    data = StreamedFeatures(feature_ND, label_N, weight_N, np.ones(IMAGES, bool))
    layers = Layers(WIDTH, 0, 0.0).eval()
    standardise(layers, data, Alone())
    means = class_means(layers, data, CLASSES, Alone())
    rows = Rows(0, torch.zeros(CLASSES, WIDTH), torch.zeros(CLASSES))
    probe = _Probe(means, rows, torch.zeros(CLASSES), *_probed(layers, data, Alone()), Alone())
    own_SB, used_B = probe.own_logits((1.0, 0.5))
    embedded_NH = layers.embed(torch.from_numpy(feature_ND)).numpy() - means.centre_H.numpy()
    precision_HH = means.precision_HH.numpy()
    for n in range(IMAGES):
        others = (label_N == label_N[n]) & (np.arange(IMAGES) != n)
        assert bool(used_B[n]) == others.any()
        if others.any():
            mean_H = np.average(embedded_NH[others], axis=0, weights=weight_N[others])
            expected = mean_H @ precision_HH @ embedded_NH[n] - mean_H @ precision_HH @ mean_H / 2
            np.testing.assert_allclose(own_SB[:, n].numpy(), [expected, expected / 2], rtol=1e-3, atol=1e-3)
