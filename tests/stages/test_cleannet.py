"""What a worker of CleanNet draws from, without a worker group."""

from cleanscale.stages import cleannet
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.storage.shards import Shard


def collection(rows: int) -> FeatureShards:
    """Four shards of a class each."""
    return FeatureShards("there", "f", 100, tuple(Shard(k, k, k + 1, 0, 1, rows) for k in range(4)))


def test_every_worker_draws_from_all_of_a_small_collection_and_from_its_share_of_a_large_one():
    small, large = collection(rows=1000), collection(rows=1_000_000)
    assert [cleannet.shards_of(small, rank, 2) for rank in range(2)] == [list(small.shards)] * 2
    shares = [cleannet.shards_of(large, rank, 2) for rank in range(2)]
    assert sorted(shard.index for share in shares for shard in share) == [0, 1, 2, 3]
    assert cleannet.shards_of(large, 0, 1) == list(large.shards)
