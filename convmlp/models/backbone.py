"""The interface of this package's hierarchical networks: timm's, with feature maps and a mean-pooled head.

A network is a sequence of named parts on [B, C, H, W]; a LayerNorm, the mean over positions and a linear head
follow. Subclasses build the parts, say which of them give feature maps (`feature_info`), and may normalise these.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convmlp.models.layers import height_width, take_indices


class HierarchicalBackbone(nn.Module):
    """[B, in_chans, H, W] → [B, num_classes]; `num_classes=0` leaves the head out: [B, num_features].

    Subclasses set the attributes below, `norm` (LayerNorm over the last dimension) and `head`.
    """

    num_classes: int
    num_features: int
    """Channels after the last part; `head_hidden_size` is timm's second name for it."""
    in_chans: int
    min_image_size: int
    """Smallest height and width in pixels."""
    feature_info: list[dict[str, Any]]
    """timm's description of the feature maps: `num_chs`, `reduction`, `module`."""
    norm: nn.Module
    head: nn.Module

    @abstractmethod
    def parts(self) -> list[tuple[str, nn.Module]]:
        """The parts in order, by their `state_dict` prefix."""

    @abstractmethod
    def keep_parts(self, count: int) -> None:
        """Drop the parts after the first `count`."""

    @abstractmethod
    def init_head(self, head: nn.Linear) -> None:
        """Fill a fresh head as the paper does."""

    @property
    def head_hidden_size(self) -> int:
        """Channels that enter the head."""
        return self.num_features

    def make_head(self, num_classes: int) -> nn.Module:
        """A linear head, or Identity for 0 classes."""
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → normalised features [B, num_features, H', W'] (NCHW)."""
        self.check_images(x)
        for _, part in self.parts():
            x = part(x)
        return self._normalise(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, num_features, H', W'] → logits [B, num_classes], or the pooled features [B, num_features]."""
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

        As in the published dense-prediction backbones, maps come before the final norm; `norm` applies it to
        the last map only, whose channels it fits.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        self.check_images(x)
        take, max_index = take_indices(len(self.feature_info), indices)
        wanted = {self.feature_info[i]["module"]: i for i in take}
        last_needed = self.feature_info[max_index]["module"]
        maps = []
        for name, part in self.parts():
            x = part(x)
            if name in wanted:
                is_last = wanted[name] == len(self.feature_info) - 1
                maps.append(self._normalise(x) if norm and is_last else self.feature_map(wanted[name], x))
            if stop_early and name == last_needed:
                break
        if intermediates_only:
            return maps
        return (x if stop_early else self._normalise(x)), maps

    def feature_map(self, index: int, x: Tensor) -> Tensor:
        """Returns what dense prediction gets of the part: its output `x` as it is, unless a subclass normalises it."""
        return x

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the parts that no feature map of `indices` needs; returns the indices, none negative."""
        take, max_index = take_indices(len(self.feature_info), indices)
        names = [name for name, _ in self.parts()]
        self.keep_parts(names.index(self.feature_info[max_index]["module"]) + 1)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return list(take)

    def get_classifier(self) -> nn.Module:
        """The head, Identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a freshly initialised one; 0 classes removes it.

        Raises:
            ValueError: `global_pool` asks for anything but the mean, the only pooling these networks have.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(
                f"{type(self).__name__} pools by the mean: global_pool must be 'avg', not {global_pool!r}"
            )
        self.num_classes = num_classes
        reference = next(self.parameters())
        self.head = self.make_head(num_classes).to(reference.device, reference.dtype)
        if isinstance(self.head, nn.Linear):
            self.init_head(self.head)
        self.head.train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Parameters excluded from decay beyond timm's rule (1-D tensors and biases): none."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block in the backward pass, to save memory."""
        for module in self.modules():
            if isinstance(module, BlockSequence):
                module.grad_checkpointing = enable

    def check_images(self, x: Tensor) -> None:
        """Raises ValueError where the network can't take images of this shape."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"{type(self).__name__} takes images [B, {self.in_chans}, H, W], not {list(x.shape)}: "
                "convert the images or make the model with another in_chans"
            )
        height, width = x.shape[2:]
        if height < self.min_image_size or width < self.min_image_size:
            raise ValueError(
                f"images of {height}x{width} px are too small for {type(self).__name__}, which needs "
                f"{self.min_image_size}x{self.min_image_size} at least: enlarge them"
            )

    def _normalise(self, x: Tensor) -> Tensor:
        return channel_norm(self.norm, x)


class BlockSequence(nn.Module):
    """Runs blocks that work on [B, H, W, C] over a [B, C, H, W] tensor, recomputing them if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def run(self, blocks: list[nn.Module], x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape, through the blocks."""
        # A no-op for channels_last inputs. For NCHW memory this one copy replaces the ones that the
        # LayerNorms and the mixed-stride addition of the first block would make.
        x = x.permute(0, 2, 3, 1).contiguous()
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x.permute(0, 3, 1, 2)


def channel_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm over the last dimension, applied to the channels of [B, C, H, W]."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def linear_rates(highest: float, num_blocks: int) -> list[float]:
    """Stochastic depth rates rising linearly from 0 to `highest`.

    Raises:
        ValueError: `highest` is outside [0, 1).
    """
    if not 0 <= highest < 1:
        raise ValueError(f"drop_path_rate must lie in [0, 1), not {highest}")
    # On the CPU by name, so that models can be built on the meta device.
    return torch.linspace(0, highest, num_blocks, device="cpu").tolist()


def check_stages(**per_stage: Any) -> None:
    """Raises ValueError unless the named sequences have one entry per stage, for at least two stages."""
    lengths = {len(values) for values in per_stage.values()}
    if len(lengths) != 1 or lengths.pop() < 2:
        names = ", ".join(f"{name}={tuple(values)}" for name, values in per_stage.items())
        raise ValueError(f"there must be one entry per stage, for at least two stages; got {names}")


def check_patches(img_size: int | tuple[int, int], patch_size: int) -> None:
    """Raises ValueError unless images of `img_size` split into whole patches."""
    height, width = height_width(img_size)
    if min(height, width) < patch_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"img_size {height}x{width} must be a multiple of the patch size {patch_size}: "
            "choose another image size or a model with smaller patches"
        )


def check_fixed_size(model: nn.Module, x: Tensor, size: tuple[int, int]) -> None:
    """Raises ValueError unless `x` holds images of exactly the `size` that the model was made for."""
    in_chans: int = model.in_chans  # type: ignore[assignment]
    if x.ndim != 4 or tuple(x.shape[1:]) != (in_chans, *size):
        raise ValueError(
            f"{type(model).__name__} takes images [B, {in_chans}, {size[0]}, {size[1]}], not {list(x.shape)}: "
            "its token-mixing weights fit one image size; make it with img_size=... for another"
        )
