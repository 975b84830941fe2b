"""Rows of image classifiers that workers own: interrupted, under another number of workers, fine-tuned."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_threads import Threads, on_threads

from cleanscale.engine.train import Worker
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import build_classifier
from cleanscale.stages import head_files
from cleanscale.stages.sharded_training import SpreadHead
from cleanscale.training.classifier import Batch, ClassifierSettings, fit_classifier
from cleanscale.training.head_settings import HeadSettings

CLASSES, SIDE, STEPS = 6, 32, 2
BACKBONE = BackboneSettings(name="test_convnext", weights="", image_size=SIDE)
PLAN = HeadSettings(sharded="on", negatives=2).resolved(CLASSES)
SETTINGS = ClassifierSettings(epochs=3, learning_rate=0.003, optimizer="adamw", warmup_epochs=0)


@pytest.fixture(autouse=True)
def _alone(alone):
    """On one thread."""


class LostError(Exception):
    """In place of a lost worker."""


def batches(epoch: int, together: Threads) -> list[Batch]:
    rng = np.random.default_rng(epoch)
    here = slice(12 * together.rank // together.world, 12 * (together.rank + 1) // together.world)
    images = [torch.from_numpy(rng.integers(0, 255, (12, 3, SIDE, SIDE)).astype(np.uint8)) for _ in range(STEPS)]
    return [Batch(image[here], (torch.arange(12) % CLASSES)[here], torch.ones(12)[here]) for image in images]


def trained(folder: Path, world: int, until: int, begun: dict | None = None, start: str | None = None) -> list[dict]:
    """What rank 0's checkpoints held; rows are written where all epochs are done."""
    models = [build_classifier(BACKBONE, None, seed=1) for _ in range(world)]
    states: list[dict] = []

    def work(together: Threads) -> None:
        model = models[together.rank]
        done = begun["next_epoch"] if begun else 0
        worker = Worker(str(folder), "cpu", together)
        head = SpreadHead(worker, model.head, CLASSES, PLAN, seed=0, epochs_done=done, start=start)

        def on_epoch(epoch, metrics, state):
            assert np.isfinite(metrics["loss"])
            assert "train_top1" not in metrics, "not known from sampled classes"
            head.keep(epoch + 1)
            if together.rank == 0:
                states.append(copy.deepcopy(state()))
            if epoch + 1 == until < SETTINGS.epochs:
                together.wait()  # who is first must not break the barrier before the checkpoint is kept
                raise LostError

        fit_classifier(
            model, lambda epoch: batches(epoch, together), SETTINGS, steps_per_epoch=STEPS, seed=0,
            start=copy.deepcopy(begun),
            collectives=together, objective=head.objective, on_epoch=on_epoch,
        )  # fmt: skip
        head.write()

    try:
        on_threads(work, world)
    except LostError:
        assert until < SETTINGS.epochs
    return states


def rows_of(folder: Path) -> np.ndarray:
    return head_files.load_frozen(str(folder / head_files.HEAD)).weight_CH


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path):
    trained(tmp_path / "whole", 1, SETTINGS.epochs)
    states = trained(tmp_path / "broken", 1, 1)
    assert not head_files.exists(str(tmp_path / "broken" / head_files.HEAD))
    trained(tmp_path / "broken", 1, SETTINGS.epochs, states[-1])
    np.testing.assert_array_equal(rows_of(tmp_path / "broken"), rows_of(tmp_path / "whole"))
    # The network's checkpoint may be the one before the head's last: both are still there.
    trained(tmp_path / "late", 1, 2)
    trained(tmp_path / "late", 1, SETTINGS.epochs, states[-1])
    np.testing.assert_array_equal(rows_of(tmp_path / "late"), rows_of(tmp_path / "whole"))
    assert [file.name for file in (tmp_path / "late").iterdir()] == [head_files.HEAD]


def test_a_checkpoint_of_two_workers_is_gone_on_with_by_three(tmp_path):
    states = trained(tmp_path, 2, 1)
    trained(tmp_path, 3, SETTINGS.epochs, states[-1])
    assert rows_of(tmp_path).shape == (CLASSES, build_classifier(BACKBONE, None).head.width)
    assert np.isfinite(rows_of(tmp_path)).all()


def test_what_ended_between_the_last_checkpoint_and_the_manifest_is_written_again(tmp_path):
    states = trained(tmp_path, 2, SETTINGS.epochs)
    before = rows_of(tmp_path)
    trained(tmp_path, 3, SETTINGS.epochs, states[-1])
    np.testing.assert_array_equal(rows_of(tmp_path), before)


def test_fine_tuning_begins_with_the_rows_of_the_start(tmp_path):
    trained(tmp_path / "first", 2, SETTINGS.epochs)
    first = str(tmp_path / "first" / head_files.HEAD)
    model = build_classifier(BACKBONE, None, seed=1)

    def begun(together: Threads) -> torch.Tensor:
        worker = Worker(str(tmp_path / "second"), "cpu", together)
        return SpreadHead(worker, model.head, CLASSES, PLAN, seed=9, epochs_done=0, start=first).part.rows.weight_RH

    weight_CH = torch.cat(on_threads(begun, 3)).numpy()
    np.testing.assert_array_equal(weight_CH, rows_of(tmp_path / "first"))
