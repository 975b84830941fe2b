import numpy as np
import pytest
import torch
from worker_threads import on_threads

from cleanscale.engine.train import LoneWorker, Worker
from cleanscale.models.heads import Head
from cleanscale.stages import head_files
from cleanscale.stages.sharded_training import begun, fit_or_go_on
from cleanscale.training.collectives import Alone
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.sharded_heads import fit_sharded_head

CLASSES, WIDTH = 30, 8
PLAN = HeadSettings(sharded="on", epochs=3, batch=32, hidden_width=6, exact=True).resolved(CLASSES)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(head_files, "PIECE_CLASSES", 8)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    label_N = np.sort(rng.integers(0, CLASSES, 300))
    return rng.standard_normal((CLASSES, WIDTH))[label_N].astype(np.float16), label_N


class QuietWorker(LoneWorker):
    """A worker of a group of threads that tells nobody."""

    def __init__(self, uri, together):
        super().__init__(uri, "cpu", lambda said: None)
        self.collectives = together


def fit(folder, images, world: int, stop_after: int | None = None) -> None:
    """A fit of `world` workers with the same images; killed once `stop_after` epochs are in a checkpoint."""

    def on_loss(epoch: int, _: float) -> None:
        if epoch == stop_after:
            raise KeyboardInterrupt

    def work(together):
        plan = PLAN.model_copy(update={"batch": 32 * together.world})
        worker: Worker = QuietWorker(str(folder), together)
        weight_N = np.ones(len(images[1]), np.float32)
        fit_or_go_on(worker, f"{folder}/head", *images, weight_N, CLASSES, plan, seed=0, on_loss=on_loss)

    if stop_after is None:
        on_threads(work, world)
        return
    with pytest.raises(KeyboardInterrupt):
        on_threads(work, world)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_head_is_read_again_by_any_number_of_workers(tmp_path, images, world):
    made = fit_sharded_head(*images, None, CLASSES, PLAN, seed=0)

    def write(together):
        part = made
        if together.world > 1:
            part = head_files.read_part(str(tmp_path / "first"), together)
        head_files.write_part(str(tmp_path / "again"), part, together, with_state=True)

    head_files.write_part(str(tmp_path / "first"), made, Alone(), with_state=True)
    on_threads(write, world)
    back = head_files.read_part(str(tmp_path / "again"), Alone())
    for one, other in zip((*made.rows[1:], made.square_R), (*back.rows[1:], back.square_R), strict=True):
        assert torch.equal(one, other)
    assert back.optimizer["state"][0]["exp_avg"].equal(made.optimizer["state"][0]["exp_avg"])
    assert back.epochs_done == 3
    frozen, expected = head_files.load_frozen(str(tmp_path / "again")), made.frozen()
    np.testing.assert_array_equal(frozen.log_probability(images[0]), expected.log_probability(images[0]))
    dense = head_files.load_dense(str(tmp_path / "again"))
    np.testing.assert_array_equal(dense.frozen().log_probability(images[0]), expected.log_probability(images[0]))
    assert len(list((tmp_path / "first").glob("weight-*.npy"))) == 4  # by range of classes, not by class


def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(tmp_path, images):
    fit(tmp_path / "whole", images, 1)
    fit(tmp_path / "cut", images, 1, stop_after=2)
    assert not head_files.exists(str(tmp_path / "cut/head"))
    fit(tmp_path / "cut", images, 1)
    found = [head_files.load_frozen(str(tmp_path / name / "head")) for name in ("whole", "cut")]
    np.testing.assert_allclose(found[1].weight_CH, found[0].weight_CH, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1].hidden_HD, found[0].hidden_HD, rtol=1e-5, atol=1e-6)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["head"]  # no checkpoint is left


def test_an_interrupted_fit_goes_on_with_another_number_of_workers_and_back(tmp_path, images):
    fit(tmp_path / "whole", images, 1)
    fit(tmp_path / "cut", images, 1, stop_after=1)
    fit(tmp_path / "cut", images, 2, stop_after=2)
    fit(tmp_path / "cut", images, 1)
    whole, cut = (head_files.load_frozen(str(tmp_path / name / "head")) for name in ("whole", "cut"))
    # Two workers with the same images take steps of twice as many: the same gradients, other orders.
    length_C = np.linalg.norm(whole.weight_CH, axis=1) * np.linalg.norm(cut.weight_CH, axis=1)
    assert ((whole.weight_CH * cut.weight_CH).sum(1) / length_C).min() > 0.95
    np.testing.assert_allclose(cut.hidden_HD, whole.hidden_HD, atol=0.02)


def test_workers_that_do_not_see_the_same_checkpoints_go_on_behind_the_newest(tmp_path, images):
    fit(tmp_path / "seen", images, 1, stop_after=2)
    fit(tmp_path / "stale", images, 1, stop_after=1)
    for seen_by in (["seen", "stale"], ["stale", "seen"], ["nothing", "seen"]):
        found = on_threads(lambda together, of=seen_by: begun(f"{tmp_path}/{of[together.rank]}/head", 3, together), 2)
        assert [name.rpartition("/")[2] for name in found] == ["head-after-002"] * 2
    assert begun(f"{tmp_path}/nothing/head", 3, Alone()) is None


def test_a_dense_head_is_found_by_the_same_name(tmp_path):
    head = Head(WIDTH, CLASSES, 4).eval()
    uri = str(tmp_path / "head")
    assert not head_files.exists(uri)
    head_files.write_dense(uri, head)
    assert head_files.exists(uri)
    np.testing.assert_array_equal(head_files.load_frozen(uri).weight_CH, head.frozen().weight_CH)
    assert torch.equal(head_files.load_dense(uri).output.weight, head.output.weight)


def test_pieces_are_cut_where_other_numbers_of_workers_cut_them():
    assert head_files.pieces(0, 20) == [(0, 8), (8, 16), (16, 20)]
    assert head_files.pieces(10, 30) == [(10, 16), (16, 24), (24, 30)]
    assert head_files.pieces(5, 5) == []
