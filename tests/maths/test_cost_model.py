"""The cost of a run as a function of its size."""

from dataclasses import replace

import pytest

from cleanscale.maths.cost_model import (
    RATES,
    Cluster,
    Workload,
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


def test_more_nodes_are_faster():
    time_of = [sum(seconds(IMAGES, replace(GPUS, nodes=nodes)).values()) for nodes in (1, 8, 64)]
    assert time_of[0] > 4 * time_of[1] > 16 * time_of[2]


def test_only_the_first_two_rounds_train_the_backbone_and_features_follow_it():
    trained = replace(IMAGES, frozen=False, images=10**6, classes=1000)
    names = [stage.name for stage in stages(replace(trained, rounds=3), GPUS)]
    assert names.count("features") == 2
    assert names.count("classifier") == 3
    first, last = (stages(trained, GPUS)[at] for at in (1, -2))
    assert (first.name, last.name) == ("classifier", "weighted classifier")
    assert first.gpu_s == pytest.approx(3 * last.gpu_s)  # 30 epochs, then 10
    assert sum(stage.name == "features" for stage in stages(replace(IMAGES, rounds=3), GPUS)) == 1


def test_features_of_images_are_written_as_wide_as_the_backbone_makes_them_before_they_are_projected():
    (narrow, wide) = (
        next(s for s in stages(replace(IMAGES, backbone_width=width), GPUS) if s.name == "features")
        for width in (256, 2048)
    )
    assert wide.moved_bytes - narrow.moved_bytes == pytest.approx(2 * 2 * (2048 - 256) * IMAGES.images)
    assert wide.left_bytes == narrow.left_bytes


def test_one_node_sends_nothing_and_the_steps_of_many_do_not_depend_on_the_classes():
    assert set(step_bytes(MILLION, Cluster()).values()) == {0.0}
    here = Cluster(nodes=4)
    assert step_bytes(MILLION, here) == step_bytes(replace(MILLION, classes=10**7), here)


@pytest.mark.parametrize("name", list(RATES))
def test_every_constant_says_its_unit_and_where_it_comes_from(name):
    assert RATES[name].value > 0
    assert RATES[name].unit
    assert RATES[name].source
