"""The cost of a run as a function of its size."""

from dataclasses import replace

import pytest

from cleanscale.maths.cost_model import (
    RATES,
    Cluster,
    Workload,
    disk,
    limits,
    memory,
    memory_per_node,
    stages,
    step_bytes,
)

MILLION = Workload(images=20_000_000, classes=1_000_000)
IMAGES = Workload(images=10**9, classes=10**7, width=256, source="images", frozen=True, head_batch=16_384)
GPUS = Cluster(nodes=8, cores=32, memory_bytes=512e9, gpus=8, disk_bytes=8e12, network_bytes_per_s=12.5e9)


def seconds(work: Workload, cluster: Cluster) -> dict[str, float]:
    return {stage.name: stage.seconds(cluster) for stage in stages(work, cluster)}


def test_the_cost_per_image_does_not_grow_with_the_classes_but_for_the_search_among_them():
    few = {s.name: s.core_s for s in stages(Workload(images=10**8, classes=100_000), Cluster())}
    many = {s.name: s.core_s for s in stages(Workload(images=10**8, classes=1_000_000), Cluster())}
    per_class, searching = {"class_index", "references"}, {"evidence", "relevance"}
    for name in few.keys() - per_class - searching:
        assert many[name] <= 1.1 * few[name], name
    for name in searching:
        assert many[name] <= 10**0.5 * few[name], name


def test_more_nodes_are_faster_and_take_no_more_memory_each():
    time_of = [sum(seconds(IMAGES, replace(GPUS, nodes=nodes)).values()) for nodes in (1, 8, 64)]
    assert time_of[0] > 4 * time_of[1] > 16 * time_of[2]
    held = [memory_per_node(IMAGES, replace(GPUS, nodes=nodes)) for nodes in (1, 8, 64)]
    assert held[0] >= held[1] >= held[2]


def test_the_sharded_head_needs_less_of_each_node_the_more_there_are_and_the_dense_one_does_not():
    rows = [memory(IMAGES, replace(GPUS, nodes=nodes))["head worker"] for nodes in (1, 8)]
    assert rows[0] > 5 * rows[1]
    dense = replace(IMAGES, classes=50_000)
    assert memory(dense, GPUS)["head worker"] == memory(dense, replace(GPUS, nodes=1))["head worker"]


def test_what_a_whole_head_trained_on_images_breaks_is_named_with_the_remedy():
    trained, many = replace(IMAGES, frozen=False), replace(GPUS, nodes=64)
    worst = limits(replace(trained, sharded_from=10**9), many)[0]
    assert worst.what == "memory of a GPU"
    assert worst.share > 1
    assert "--heads.sharded" in worst.remedy
    assert {limit.what: limit.share for limit in limits(trained, many)}["memory of a GPU"] < 0.01


def test_limits_stand_in_order_and_every_one_has_a_remedy():
    found = limits(MILLION, Cluster(memory_bytes=12e9))
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
    assert all(one.remedy for one in found)


def test_one_node_sends_nothing_and_the_steps_of_many_do_not_depend_on_the_classes():
    assert set(step_bytes(MILLION, Cluster()).values()) == {0.0}
    here = Cluster(nodes=4)
    assert step_bytes(MILLION, here) == step_bytes(replace(MILLION, classes=10**7), here)


def test_disk_grows_with_images_and_holds_features_twice_for_a_while():
    once = 2.0 * MILLION.width * MILLION.images
    assert disk(MILLION, Cluster()) > 2 * once
    assert disk(replace(MILLION, images=2 * MILLION.images), Cluster()) < 2 * disk(MILLION, Cluster())


@pytest.mark.parametrize("name", list(RATES))
def test_every_constant_says_its_unit_and_where_it_comes_from(name):
    assert RATES[name].value > 0
    assert RATES[name].unit
    assert RATES[name].source
