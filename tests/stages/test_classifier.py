from collections import defaultdict

import numpy as np
import pytest
import torch

from cleanscale.errors import ConfigError
from cleanscale.stages import classifier
from cleanscale.stages.classifier import EpochStreams, as_batch, filled, relevant, spread_plan
from cleanscale.stages.supervision import AS_LABELLED, Supervision, Taught
from cleanscale.training.classifier import ClassifierSettings
from cleanscale.training.head_settings import HeadSettings


def block(rows: list[int], ok: bool = True) -> dict[str, np.ndarray]:
    image = np.broadcast_to(np.array(rows).astype(np.uint8)[:, None, None, None], (len(rows), 3, 2, 2))
    return {"row": np.array(rows), "image": image, "ok": np.full(len(rows), ok)}


def test_every_worker_takes_as_many_steps_and_what_fills_them_up_does_not_count():
    taken = list(filled(iter([block([1, 2, 3, 4]), block([5])]), batch=4, steps=3))
    assert [b["row"].tolist() for b in taken] == [[1, 2, 3, 4], [5, 5, 5, 5], [5, 5, 5, 5]]
    assert [b["ok"].tolist() for b in taken] == [[True] * 4, [True, False, False, False], [False] * 4]


def test_labels_and_weights_come_to_images_by_row_and_unreadable_images_weigh_nothing():
    label_R = np.array([9, 8, 7, 6], np.int32)
    weight_R = np.array([0.1, 0.2, np.nan, 0.4], np.float32)
    batch = as_batch(block([3, 0, 2]), label_R, Taught(AS_LABELLED, weight_R, None))
    assert batch.label_B.tolist() == [6, 9, 7]
    torch.testing.assert_close(batch.weight_B, torch.tensor([0.4, 0.1, 0.0]))
    assert as_batch(block([3, 0], ok=False), label_R, AS_LABELLED.read()).weight_B.tolist() == [0, 0]
    assert as_batch(block([3, 0]), label_R, AS_LABELLED.read()).weight_B.tolist() == [1, 1]


@pytest.mark.parametrize("windows_of_a_stream", [1, 3, 100])
def test_epochs_are_read_whole_and_in_order_however_many_share_a_stream(monkeypatch, windows_of_a_stream):
    """Against reading each epoch alone; what Ray Data does in between (order kept) is a plain loop here."""
    monkeypatch.setattr(classifier, "STREAM_WINDOWS", windows_of_a_stream)
    monkeypatch.setattr(classifier, "decode_cpus", lambda: 1.0)
    monkeypatch.setattr(classifier, "stream", lambda items, read, num_cpus: [read(item) for item in items])
    monkeypatch.setattr(classifier, "blocks", iter)

    def requests_of(epoch):
        rows = np.random.default_rng(epoch).permutation(23)
        return [(epoch, (rows[start : start + 5], [])) for start in range(0, 23, 5)]

    streams = EpochStreams(requests_of, lambda item: block([100 * item[0] + int(row) for row in item[1][0]]), epochs=6)
    seen = defaultdict(list)
    for epoch in range(2, 6):  # a run that goes on from a checkpoint starts anywhere
        for one in streams.batches(epoch, 4):
            seen[epoch].append(one["row"])
    for epoch, batches in seen.items():
        assert [len(rows) for rows in batches] == [4] * 5 + [3]
        expected = 100 * epoch + np.random.default_rng(epoch).permutation(23)
        np.testing.assert_array_equal(np.concatenate(batches), expected)


def test_settings_of_fine_tuning_do_not_concern_round_0_nor_those_of_round_0_the_others():
    plain = ClassifierSettings()
    assert relevant(plain, 0) == relevant(plain.model_copy(update={"finetune_epochs": 3}), 0)
    assert relevant(plain, 0) != relevant(plain.model_copy(update={"epochs": 3}), 0)
    assert relevant(plain, 1) == relevant(plain.model_copy(update={"epochs": 3}), 1)
    assert relevant(plain, 1) != relevant(plain.model_copy(update={"finetune_epochs": 3}), 1)
    assert relevant(plain, 1) != relevant(plain.model_copy(update={"weight_decay": 0.5}), 1)


def test_how_rows_are_trained_matters_only_where_they_are_spread():
    plain, other = ClassifierSettings(), ClassifierSettings(row_learning_rate=0.1)
    few, many = (spread_plan(HeadSettings(), plain, classes, AS_LABELLED) for classes in (1000, 100_000))
    assert few is None
    assert many is not None
    assert many.row_learning_rate == plain.row_learning_rate
    assert relevant(plain, 0) == relevant(other, 0)
    assert relevant(plain, 1, many) != relevant(other, 1, many)
    assert relevant(plain, 0, many) != relevant(plain, 0, many.model_copy(update={"exact": True}))
    # The rows' rate follows the backbone's as a share of round 0's highest.
    assert relevant(plain, 1, many) != relevant(plain.model_copy(update={"learning_rate": 0.5}), 1, many)


def test_what_a_sharded_head_cannot_do_is_said_and_lists_of_labels_keep_it_whole():
    smoothed, heads = ClassifierSettings(label_smoothing=0.1), HeadSettings(sharded="on")
    with pytest.raises(ConfigError, match=r"--classifier\.label_smoothing is 0\.1"):
        spread_plan(heads, smoothed, 10, AS_LABELLED)
    assert spread_plan(heads, smoothed, 10, Supervision(lists=object())) is None  # type: ignore[arg-type]
