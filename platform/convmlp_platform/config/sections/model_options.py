"""The further arguments of a model that a job, a bundle or a checkpoint may name: what its architecture is made of.

timm takes more under the same roof: files to read, URLs to fetch, classes to call. What a model is described by comes
from others, too, so only these names pass, with plain values of sizes that models have.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator

from convmlp_platform.config.explain.suggest import nearest

MAX_IMAGE_SIZE = 4096
"""Pixels, one side."""
MAX_SIDE = 8192
"""Pixels: the longer side of whole images."""
MAX_CHANNELS = 8192
MAX_CLASSES = 1_000_000

_OURS = """
stem_channels conv_blocks dims blocks mlp_ratios stem_stride num_blocks embed_dim patch_size img_size gelu feature_norms
drop_rate drop_path_rate
"""
_TIMMS = """
attn_drop_rate pos_drop_rate proj_drop_rate patch_drop_rate drop_block_rate init_values ls_init_value
layer_scale_init_value weight_init zero_init_last head_init_scale
depth depths layers stages channels embed_dims widths heads num_heads head_dim mlp_ratio num_features head_hidden_size
cardinality base_width bottle_ratio expand_ratio group_size growth_rate kernel_size kernel_sizes window_size
window_sizes window_ratio sr_ratios se_ratio output_stride stem_width stem_size stem_type stem_kernel_size
act_layer norm_layer norm_eps global_pool qkv_bias proj_bias qk_norm conv_bias conv_mlp use_grn avg_down
replace_stem_pool block_reduce_first class_token reg_tokens no_embed_class pos_embed pre_norm fc_norm final_norm
head_norm_first dynamic_img_size dynamic_img_pad strict_img_size pad_type
"""
_NAMES = frozenset([*_OURS.split(), *_TIMMS.split()])
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
_LARGEST = 1e6
_MAX_ITEMS = 64


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options, if each is one of an architecture's and has a plain value.

    Raises:
        ValueError: naming each that is not.
    """
    problems = [line for name, value in list(options.items())[:_MAX_ITEMS] for line in _problems(name, value)]
    if len(options) > _MAX_ITEMS:
        problems.append(f"these are {len(options):,}; no model takes more than {_MAX_ITEMS}")
    if problems:
        raise ValueError("\n".join(problems))
    return options


ModelOptions = Annotated[dict[str, Any], AfterValidator(check_options)]
"""For the fields of schemas."""


def _problems(name: str, value: Any) -> list[str]:
    if name not in _NAMES:
        near = nearest(name, sorted(_NAMES))
        hint = f"did you mean {near}?" if near else "only what an architecture is made of can be chosen"
        return [f"{name[:60]!r} is no option of a model here; {hint}"]
    if not _is_plain(value, depth=2):
        return [
            f"{name!r} must be a switch, a word, a whole number up to {MAX_CHANNELS}, another up to {_LARGEST:g}, or a "
            f"list of up to {_MAX_ITEMS} of them (got {str(value)[:60]})"
        ]
    return []


def _is_plain(value: Any, depth: int) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -1 <= value <= MAX_CHANNELS
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= _LARGEST
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, list | tuple):
        return depth > 0 and len(value) <= _MAX_ITEMS and all(_is_plain(item, depth - 1) for item in value)
    return False
