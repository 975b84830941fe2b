"""What a run holds as a function of its size, and what breaks first."""

from dataclasses import replace

import pytest

from cleanscale.maths import cost_model
from cleanscale.maths.capacity import disk, gpu_memory, limits, memory, memory_per_node, scratch
from cleanscale.maths.cost_model import Cluster, Workload
from cleanscale.storage import rows

MILLION = Workload(images=20_000_000, classes=1_000_000)
IMAGES = Workload(images=10**9, classes=10**7, width=256, source="images", frozen=True, head_batch=16_384)
GPUS = Cluster(nodes=8, cores=32, memory_bytes=512e9, gpus=8, disk_bytes=8e12, network_bytes_per_s=12.5e9)
DENSE = Workload(images=10**9, classes=1000)


def test_more_nodes_take_no_more_memory_each():
    held = [memory_per_node(IMAGES, replace(GPUS, nodes=nodes)) for nodes in (1, 8, 64)]
    assert held[0] >= held[1] >= held[2]


def test_workers_of_a_dense_head_hold_their_images_and_a_copy_of_those_it_learns_from():
    each = 4 * DENSE.width * (1 + 3 / 4) + 100  # float32 of all, of three folds of four, and numbers of each image
    assert memory(DENSE, Cluster())["images of heads"] == pytest.approx(each * DENSE.images)
    assert memory(DENSE, Cluster(nodes=8))["images of heads"] == pytest.approx(each * DENSE.images / 8)
    assert gpu_memory(DENSE, Cluster(gpus=8)) > 4 * DENSE.width * 3 / 4 * DENSE.images / 8
    worst = {limit.what: limit for limit in limits(DENSE, Cluster(memory_bytes=64e9))}["memory of a node"]
    assert worst.share > 1
    assert "--heads.sharded on" in worst.remedy


def test_features_of_a_sharded_head_lie_in_scratch_and_count_as_no_memory_once_they_are_many():
    assert cost_model.IN_MEMORY_BYTES == rows.IN_MEMORY_BYTES
    sharded = replace(DENSE, classes=100_000)
    wider = replace(sharded, width=2 * sharded.width)
    more = memory(wider, Cluster())["images of heads"] - memory(sharded, Cluster())["images of heads"]
    assert more < 0.001 * 2 * sharded.width * sharded.images
    assert scratch(sharded, Cluster()) >= 2 * sharded.width * sharded.images
    assert scratch(replace(sharded, images=10**6), Cluster()) == 0


def test_a_class_that_holds_most_images_needs_a_task_that_holds_their_signals():
    even, uneven = (memory(replace(DENSE, largest_share=share), Cluster())["tasks"] for share in (0.001, 0.9))
    assert uneven - even > 200 * 0.9 * DENSE.images
    assert Workload(1000, 1).largest_class == 1000
    assert all(Workload(1000, classes).largest_class >= 1000 / classes for classes in (2, 10, 100))


def test_the_sharded_head_needs_less_of_each_node_the_more_there_are_and_the_dense_one_does_not():
    rows = [memory(IMAGES, replace(GPUS, nodes=nodes))["heads"] for nodes in (1, 8)]
    assert rows[0] > 5 * rows[1]
    dense = replace(IMAGES, classes=50_000)
    assert memory(dense, GPUS)["heads"] == memory(dense, replace(GPUS, nodes=1))["heads"]


def test_what_a_whole_head_trained_on_images_breaks_is_named_with_the_remedy():
    trained, many = replace(IMAGES, frozen=False), replace(GPUS, nodes=64)
    whole = {limit.what: limit for limit in limits(replace(trained, sharded_from=10**9), many)}["memory of a GPU"]
    assert whole.share > 1
    assert "--heads.sharded" in whole.remedy
    assert {limit.what: limit.share for limit in limits(trained, many)}["memory of a GPU"] < 0.01


def test_limits_stand_in_order_and_every_one_has_a_remedy():
    found = limits(MILLION, Cluster(memory_bytes=12e9))
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
    assert all(one.remedy for one in found)


def test_disk_grows_with_images_and_holds_features_twice_for_a_while():
    once = 2.0 * MILLION.width * MILLION.images
    assert disk(MILLION, Cluster()) > 2 * once
    assert disk(replace(MILLION, images=2 * MILLION.images), Cluster()) < 2 * disk(MILLION, Cluster())
