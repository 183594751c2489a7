"""`make bench`: training speed on this machine, layouts and precisions side by side in one run.

    python tests/bench/bench_training.py

Rounds of the contestants alternate and the best of each counts, so that other load on the machine hits all alike.
Reading and preparing data have `make bench-data`, saving has `make bench-checkpoint`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch

from convmlp import create_model

ROUNDS = 3


def best_rates(contestants: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Images per second of each, the best of `ROUNDS` alternating rounds."""
    rates = dict.fromkeys(contestants, 0.0)
    for _ in range(ROUNDS):
        for name, work in contestants.items():
            start = time.perf_counter()
            images = work()
            rates[name] = max(rates[name], images / (time.perf_counter() - start))
    return rates


def training() -> dict[str, float]:
    """Forward, backward and update of ConvMLP-S at 224 pixels, batch 8 on a CPU and 128 on a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, steps = (128, 20) if device.type == "cuda" else (8, 2)

    def contestant(layout: torch.memory_format, bf16: bool) -> Callable[[], int]:
        model = create_model("convmlp_s").to(device, memory_format=layout)
        optimizer = torch.optim.AdamW(model.parameters())
        images = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=layout)
        labels = torch.randint(0, 1000, (batch,), device=device)

        def run() -> int:
            for _ in range(steps):
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            loss.item()
            return steps * batch

        run()
        return run

    return best_rates(
        {
            "fp32, NCHW": contestant(torch.contiguous_format, False),
            "fp32, channels_last": contestant(torch.channels_last, False),
            "bf16, channels_last": contestant(torch.channels_last, True),
        }
    )


def main() -> None:
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"{platform.machine()}, {device}, torch {torch.__version__}\n")
    rates = training()
    print("| ConvMLP-S, 224 px | images/s | ratio |\n|---|---:|---:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates['fp32, NCHW']:.2f} |")


if __name__ == "__main__":
    main()
