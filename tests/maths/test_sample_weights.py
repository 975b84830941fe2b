import math

import numpy as np
import torch

from cleanscale.maths.sample_weights import hard_weight, soft_weight, weighted_loss

COSINE = np.array([-0.4, 0.0, 0.25, 0.9], np.float32)


def test_soft_weight_is_the_positive_cosine():
    np.testing.assert_array_equal(soft_weight(COSINE), np.array([0, 0, 0.25, 0.9], np.float32))


def test_hard_weight_is_one_from_delta_on():
    np.testing.assert_array_equal(hard_weight(COSINE, 0.25), [0, 0, 1, 1])


def test_weighted_loss_is_weight_times_negative_log_likelihood():
    logits = [[1.0, 2.0, 0.5], [0.3, -1.0, 0.0]]
    loss = weighted_loss(torch.tensor(logits), torch.tensor([1, 2]), torch.tensor([0.5, 0.0]))
    expected = 0.5 * (math.log(sum(math.exp(x) for x in logits[0])) - 2.0)
    np.testing.assert_allclose(loss, [expected, 0.0], rtol=1e-5)
