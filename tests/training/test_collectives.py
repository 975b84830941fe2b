import torch

from cleanscale.training.collectives import device_of


def test_what_goes_through_nccl_is_on_this_workers_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device_of("nccl") == torch.device("cuda", 1)
    assert device_of("gloo") is None
