"""`augment.permute`: pixels in another order, the same for every image, in training, evaluation and prediction."""

from __future__ import annotations

from convmlp.permutation import Order, PermutedEvalTransform, PermutedTrainTransform, pixel_order
from convmlp.transforms import EvalTransform, TrainTransform
from convmlp_platform.config.recipe import AugmentSection


def order_of(augment: AugmentSection, image_size: int) -> Order | None:
    """The order of pixels that a training job asks for; None: as they are.

    Raises:
        ValueError: images of this size aren't made of whole patches.
    """
    if augment.permute == "none":
        return None
    return pixel_order(
        augment.permute, image_size, image_size, patch_size=augment.permute_patch, seed=augment.permute_seed
    )


def permuted_train(
    augment: AugmentSection, transform: TrainTransform
) -> TrainTransform | PermutedTrainTransform:
    """The transform, followed by the permutation where there is one."""
    order = order_of(augment, transform.size)
    return transform if order is None else PermutedTrainTransform(transform, order)


def permuted_eval(augment: AugmentSection, transform: EvalTransform) -> EvalTransform | PermutedEvalTransform:
    """The transform, followed by the permutation where there is one."""
    order = order_of(augment, transform.size)
    return transform if order is None else PermutedEvalTransform(transform, order)
