"""ATen's antialiased resize, a private operator that `convmlp.transforms.pixels` fills batches with."""

from __future__ import annotations

import pytest
import torch

from convmlp.transforms.pixels import _RESIZE


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_out_form_is_interpolates(mode: str) -> None:
    name = f"_upsample_{mode}2d_aa"
    needed_by = "convmlp/transforms/pixels.py fills a training batch with it"
    assert hasattr(torch.ops.aten, name), f"torch: no torch.ops.aten.{name}; {needed_by}"
    image = torch.randint(
        0, 256, (1, 3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    expected = torch.nn.functional.interpolate(
        image, (17, 13), mode=mode, antialias=True, align_corners=False
    )
    found = torch.empty_like(expected)
    _RESIZE[mode](image, [17, 13], False, None, None, out=found)
    assert torch.equal(found, expected), f"torch: torch.ops.aten.{name}.out isn't interpolate; {needed_by}"
