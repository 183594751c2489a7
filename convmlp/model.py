"""ConvMLP (arXiv:2109.04454) with timm's model interface.

The published networks are values of this class: see `convmlp.zoo`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from convmlp.layers import ConvMLPStage, ConvStage, ConvTokenizer, StemStride


class ConvMLP(nn.Module):
    """Convolutional tokenizer, convolution stage, stages of Conv-MLP blocks, LayerNorm, mean, linear head.

    [B, in_chans, H, W] → [B, num_classes], for any H and W >= 32 (odd sizes are rounded up at each stride).
    `num_classes=0` leaves the head out: the output is the pooled feature [B, dims[-1]].

    Args:
        stem_channels: channels after the tokenizer (even).
        conv_blocks: residual bottlenecks in the convolution stage.
        dims: channels per Conv-MLP stage (two or more); dims[0] is also the convolution stage's width.
        blocks: Conv-MLP blocks per stage.
        mlp_ratios: hidden width of the channel MLPs, as a multiple of the stage's channels.
        stem_stride: 4 as published, or 2 (tokenizer without max-pool) for images of about 32 px.
        drop_path_rate: highest stochastic depth rate, in [0, 1). As published, rates rise linearly from 0
            and start again in each stage.

    Raises:
        ValueError: an argument is out of its range or the per-stage sequences differ in length.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        stem_channels: int = 64,
        conv_blocks: int = 2,
        dims: Sequence[int] = (128, 256, 512),
        blocks: Sequence[int] = (2, 4, 2),
        mlp_ratios: Sequence[float] = (2, 2, 2),
        stem_stride: StemStride = 4,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        _check_shape(stem_channels, dims, blocks, mlp_ratios, stem_stride, drop_path_rate)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = _feature_info(stem_channels, dims, stem_stride)

        self.tokenizer = ConvTokenizer(in_chans, stem_channels, stem_stride)
        self.conv_stages = ConvStage(stem_channels, dims[0], conv_blocks)
        self.stages = nn.ModuleList(
            ConvMLPStage(dim, out_dim, ratio, _rates(drop_path_rate, depth))
            for dim, out_dim, ratio, depth in zip(dims, [*dims[1:], None], mlp_ratios, blocks, strict=True)
        )
        self.norm: nn.Module = nn.LayerNorm(dims[-1])
        self.head = _head(dims[-1], num_classes)
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → normalised features [B, dims[-1], H', W'] (NCHW)."""
        x = self.conv_stages(self.tokenizer(x))
        for stage in self.stages:
            x = stage(x)
        return self._normalise(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, dims[-1], H', W'] → logits [B, num_classes], or the pooled features [B, dims[-1]]."""
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the entries of `feature_info` that `indices` selects, by timm's convention.

        As in the published dense-prediction backbones, maps come before the norm (`norm` applies it to the
        last map only, whose channels it fits) and the next-to-last stage, whose output has the last
        stage's stride, is skipped.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        take, max_index = feature_take_indices(len(self.feature_info), indices)
        wanted = {self.feature_info[i]["module"]: i for i in take}
        last_needed = self.feature_info[max_index]["module"]
        maps = []
        for name, part in self._parts():
            x = part(x)
            if name in wanted:
                is_last = wanted[name] == len(self.feature_info) - 1
                maps.append(self._normalise(x) if norm and is_last else x)
            if stop_early and name == last_needed:
                break
        if intermediates_only:
            return maps
        return (x if stop_early else self._normalise(x)), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the parts that no feature map of `indices` needs; returns the indices, none negative."""
        take, max_index = feature_take_indices(len(self.feature_info), indices)
        names = [name for name, _ in self._parts()]
        num_stages = max(0, names.index(self.feature_info[max_index]["module"]) - 1)
        self.stages = self.stages[:num_stages]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return list(take)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a freshly initialised one; 0 classes removes it.

        Raises:
            ValueError: `global_pool` asks for anything but the mean, the only pooling this network has.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"ConvMLP pools by the mean: global_pool must be 'avg', not {global_pool!r}")
        self.num_classes = num_classes
        reference = next(self.parameters())
        self.head = _head(self.num_features, num_classes).to(reference.device, reference.dtype)
        self.head.apply(_init_weights)

    def no_weight_decay(self) -> set[str]:
        """Parameters excluded from decay beyond timm's rule (1-D tensors and biases): none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters for layer-wise learning rates."""
        blocks = (
            [(r"^stages\.(\d+)", None)]
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.downsample_mlp", (0,)),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^tokenizer|^conv_stages", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each Conv-MLP block in the backward pass, to save memory."""
        for module in self.modules():
            if isinstance(module, ConvMLPStage):
                module.grad_checkpointing = enable

    def _parts(self) -> list[tuple[str, nn.Module]]:
        stages = [(f"stages.{i}", stage) for i, stage in enumerate(self.stages)]
        return [("tokenizer", self.tokenizer), ("conv_stages", self.conv_stages), *stages]

    def _normalise(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _rates(highest: float, num_blocks: int) -> list[float]:
    # On the CPU by name, so that models can be built on the meta device.
    return torch.linspace(0, highest, num_blocks, device="cpu").tolist()


def _head(num_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(num_features, num_classes) if num_classes > 0 else nn.Identity()


def _feature_info(stem_channels: int, dims: Sequence[int], stem_stride: int) -> list[dict[str, Any]]:
    """timm's description of the maps: tokenizer, convolution stage, every stage but the next-to-last."""
    info = [
        {"num_chs": stem_channels, "reduction": stem_stride, "module": "tokenizer"},
        {"num_chs": dims[0], "reduction": stem_stride * 2, "module": "conv_stages"},
    ]
    last = len(dims) - 1
    for i in range(len(dims)):
        if i != last - 1:
            halvings = min(i + 1, last)
            reduction = stem_stride * 2 * 2**halvings
            info.append({"num_chs": dims[halvings], "reduction": reduction, "module": f"stages.{i}"})
    return info


def _check_shape(
    stem_channels: int,
    dims: Sequence[int],
    blocks: Sequence[int],
    mlp_ratios: Sequence[float],
    stem_stride: int,
    drop_path_rate: float,
) -> None:
    if not 2 <= len(dims) == len(blocks) == len(mlp_ratios):
        raise ValueError(
            "dims, blocks and mlp_ratios must have one entry per stage, for at least two stages; got "
            f"dims={tuple(dims)}, blocks={tuple(blocks)}, mlp_ratios={tuple(mlp_ratios)}"
        )
    if stem_channels < 2 or stem_channels % 2:
        raise ValueError(f"stem_channels must be even and positive, not {stem_channels}")
    if stem_stride not in (2, 4):
        raise ValueError(f"stem_stride must be 2 or 4, not {stem_stride}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must lie in [0, 1), not {drop_path_rate}")


def _init_weights(module: nn.Module) -> None:
    """The published initialisation; convolution biases keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
