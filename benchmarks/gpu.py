"""What one GPU makes of the three things a run gives it, each against the measured limit of that card.

    python benchmarks/gpu.py [--device cuda] [--small] [--classes 1000000 4000000] [--only features cleannet head]

Needs torch and timm, and this repository on the path; neither Ray nor any other package of its environment. First the
card's limits: FLOP/s of a large bf16 matrix product, bytes/s of a copy (read and written). Then ResNet-50 features in
bf16 (random weights), CleanNet steps at the default settings, and the sharded classifier head, exact (all classes, in
chunks) and sampled, at 1e6 and 4e6 classes. Prints one JSON line each, with operations counted by torch and the share
of the limit that is nearer. --small is a smoke test that a CPU ends in seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from cleanscale.models.cleannet import CleanNet
from cleanscale.training.collectives import Alone
from cleanscale.training.sharded_softmax import Gathered, Rows, all_classes, loss_and_gradients, sampled_classes

MARGIN = 0.2  # of a card's memory that other things may need
CHUNK_CLASSES = 65_536


class Bench:
    """Times something on a device: warm, in as many rounds as fill some seconds."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.seconds = torch.device(device), seconds

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def per_call_s(self, call: Callable[[], Any], rounds: int = 5) -> tuple[float, float]:
        """Median seconds of a call, and how far the rounds lie apart (a share of it)."""
        call()
        self.sync()
        started = time.perf_counter()
        call()
        self.sync()
        calls = max(1, math.ceil(self.seconds / rounds / max(1e-6, time.perf_counter() - started)))
        found = []
        for _ in range(rounds):
            started = time.perf_counter()
            for _ in range(calls):
                call()
            self.sync()
            found.append((time.perf_counter() - started) / calls)
        middle = statistics.median(found)
        return middle, (max(found) - min(found)) / middle

    def flops(self, call: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """Most memory of the device while called; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.sync()
        return torch.cuda.max_memory_allocated(self.device)


def limits(bench: Bench, small: bool) -> dict[str, float]:
    """What the card does at best."""
    side = 512 if small else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    matrix_s, _ = bench.per_call_s(lambda: a @ b)
    a32, b32 = a.float(), b.float()
    single_s, _ = bench.per_call_s(lambda: a32 @ b32)
    source = torch.empty((1 << 24) if small else (1 << 31), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copy_s, _ = bench.per_call_s(lambda: target.copy_(source))
    return {
        "bf16_flops_per_s": 2 * side**3 / matrix_s,
        "fp32_flops_per_s": 2 * side**3 / single_s,
        "memory_bytes_per_s": 2 * source.numel() / copy_s,
    }


def against(card: dict[str, float], seconds: float, flops: float, moved: float | None, kind: str) -> dict[str, Any]:
    """Rates, and the share of the limit that is nearer."""
    shares = {"matrix": flops / seconds / card[f"{kind}_flops_per_s"]}
    if moved is not None:
        shares["memory"] = moved / seconds / card["memory_bytes_per_s"]
    nearer = max(shares, key=lambda name: shares[name])
    return {"flops_per_s": flops / seconds, "share_of_limit": shares, "nearer_limit": nearer, "matrix_kind": kind}


def features(bench: Bench, card: dict[str, float], small: bool) -> Iterator[dict[str, Any]]:
    """Images per second through a backbone."""
    import timm

    name, size = ("test_resnet", 64) if small else ("resnet50", 224)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval().to(bench.device, torch.bfloat16)
    model = model.to(memory_format=torch.channels_last)
    for batch in (8,) if small else (64, 256, 512):
        image = torch.randn(batch, 3, size, size, device=bench.device, dtype=torch.bfloat16)
        image = image.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            flops = bench.flops(lambda image=image: model(image))
            seconds, spread = bench.per_call_s(lambda image=image: model(image))
            peak = bench.peak_bytes(lambda image=image: model(image))
        yield {
            "what": f"features {name} {size}px bf16",
            "batch": batch,
            "images_per_s": batch / seconds,
            "spread": spread,
            "peak_bytes": peak,
            **against(card, seconds, flops, None, "bf16"),
        }


def cleannet(bench: Bench, card: dict[str, float], small: bool) -> Iterator[dict[str, Any]]:
    """Optimiser steps per second: 8 references and 8 queries of each class of a batch."""
    for classes, width in ((16, 32),) if small else ((64, 256), (512, 256), (64, 2048)):
        net = CleanNet(
            width,
            reference_widths=(256, 128),
            query_width=256,
            embedding=128,
            activation="relu",
            shared_projection=True,
        ).to(bench.device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
        reference_SKD = torch.randn(classes, 8, width, device=bench.device)
        real_SK = torch.ones(classes, 8, dtype=torch.bool, device=bench.device)
        query_QD = torch.randn(classes * 8, width, device=bench.device)
        own_Q = torch.arange(classes, device=bench.device).repeat_interleave(8)

        def step(
            net: CleanNet = net,
            optimizer: torch.optim.Optimizer = optimizer,
            reference_SKD: torch.Tensor = reference_SKD,
            real_SK: torch.Tensor = real_SK,
            query_QD: torch.Tensor = query_QD,
            own_Q: torch.Tensor = own_Q,
        ) -> None:
            class_SE, _ = net.embed_classes(reference_SKD, real_SK)
            query_QE = net.embed_queries(query_QD)
            cosine_QS = torch.nn.functional.normalize(query_QE) @ torch.nn.functional.normalize(class_SE).T
            # The class-contrastive and the reconstruction term: the matrices of every term are the same.
            loss = torch.nn.functional.cross_entropy(15.0 * cosine_QS, own_Q)
            loss = loss + 0.1 * (net.reconstruct(query_QE) - query_QD).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        flops = bench.flops(step)
        seconds, spread = bench.per_call_s(step)
        yield {
            "what": "cleannet step",
            "classes_of_batch": classes,
            "queries": classes * 8,
            "width": width,
            "steps_per_s": 1 / seconds,
            "queries_per_s": classes * 8 / seconds,
            "spread": spread,
            **against(card, seconds, flops, None, "fp32"),
        }


def head(
    bench: Bench, card: dict[str, float], classes: int, width: int, batch: int, negatives: int | None
) -> dict[str, Any]:
    """Samples per second of one worker that owns all rows: forward, backward and row-wise Adagrad in one."""
    rng = np.random.default_rng(0)
    rows = Rows(
        0,
        torch.randn(classes, width, device=bench.device) * width**-0.5,
        torch.zeros(classes, device=bench.device),
    )
    square_R = torch.ones(classes, device=bench.device)
    embedded_BH = torch.randn(batch, width, device=bench.device)
    target_BT = torch.from_numpy(rng.integers(0, classes, (batch, 1))).to(bench.device)
    given = Gathered(embedded_BH, target_BT, torch.full((batch, 1), 1 / batch, device=bench.device))

    def update(which: slice | torch.Tensor, gradient_KH: torch.Tensor, gradient_K: torch.Tensor) -> None:
        square_K = square_R[which] + gradient_KH.square().mean(1)
        step_K = 1e-3 / square_K.sqrt()
        if isinstance(which, slice):
            square_R[which] = square_K
            rows.weight_RH[which].addcmul_(gradient_KH, step_K[:, None], value=-1)
            rows.bias_R[which].addcmul_(gradient_K, step_K, value=-1)
        else:
            square_R.index_copy_(0, which, square_K)
            rows.weight_RH.index_add_(0, which, gradient_KH.mul_(step_K[:, None]), alpha=-1)
            rows.bias_R.index_add_(0, which, gradient_K * step_K, alpha=-1)

    def step() -> torch.Tensor:
        if negatives is None:
            blocks = all_classes(given, rows, CHUNK_CLASSES)
        else:
            blocks = sampled_classes(given, rows, negatives, rng)
        with torch.no_grad():
            return loss_and_gradients(given, rows, blocks, update, Alone())[0]

    peak, flops = bench.peak_bytes(step), bench.flops(step)
    seconds, spread = bench.per_call_s(step)
    touched = classes if negatives is None else negatives + batch
    # Rows are read for the logits (twice), for the gradient by the embeddings and for the update, and written once.
    moved = 5.0 * 4 * touched * width + 6.0 * 4 * touched * batch
    return {
        "what": "head exact" if negatives is None else "head sampled",
        "classes": classes,
        "width": width,
        "batch": batch,
        "negatives": negatives,
        "samples_per_s": batch / seconds,
        "steps_per_s": 1 / seconds,
        "spread": spread,
        "peak_bytes": peak,
        "weights_bytes": 4 * classes * width,
        "loss": float(step()),
        **against(card, seconds, flops, moved, "fp32"),
    }


def heads(bench: Bench, card: dict[str, float], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for classes in options.classes or ([5000] if options.small else [1_000_000, 4_000_000]):
        width, batch = (32, 64) if options.small else (options.width, options.batch)
        needed = 4.0 * classes * (width + 2) + 16.0 * CHUNK_CLASSES * batch
        if bench.device.type == "cuda":
            there = torch.cuda.mem_get_info(bench.device)[0]
            if needed > (1 - MARGIN) * there:
                yield {"what": "head", "classes": classes, "left_out": f"needs {needed:.3g} bytes of {there:.3g}"}
                continue
        for negatives in (None, max(64, classes // 100), max(32, classes // 1000)):
            yield head(bench, card, classes, width, batch, negatives)
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="smoke test")
    parser.add_argument("--classes", type=int, nargs="+", default=None, help="of the head")
    parser.add_argument("--width", type=int, default=128, help="of the head's input")
    parser.add_argument("--batch", type=int, default=1024, help="images of a step of the head")
    parser.add_argument("--seconds", type=float, default=None, help="for each measurement")
    parser.add_argument("--only", nargs="+", choices=("features", "cleannet", "head"), default=None)
    options = parser.parse_args()
    bench = Bench(options.device, options.seconds or (0.2 if options.small else 5.0))
    torch.manual_seed(0)
    card = limits(bench, options.small)
    is_gpu = bench.device.type == "cuda"
    name = torch.cuda.get_device_name(bench.device) if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps({"what": "limits", "device": name, "torch": torch.__version__, **card}), flush=True)
    parts = {
        "features": lambda: features(bench, card, options.small),
        "cleannet": lambda: cleannet(bench, card, options.small),
        "head": lambda: heads(bench, card, options),
    }
    for part in options.only or parts:
        for line in parts[part]():
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
