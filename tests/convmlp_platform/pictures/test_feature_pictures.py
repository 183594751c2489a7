"""Maps as pictures: the same map gives the same colours, structure stays where it is, flat maps are no error."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.pictures.feature_map_sheet import (
    How,
    MapOfStage,
    MapsOfModel,
    feature_sheet,
    map_picture,
)

RNG = np.random.default_rng(0)
SHOWN: list[How] = ["components", "mean", "channels"]


def halves() -> NDArray[np.float64]:
    """16 channels that differ between the left and the right half."""
    values = RNG.normal(size=(16, 1, 1)) * np.ones((16, 8, 8))
    values[:, :, 4:] = RNG.normal(size=(16, 1, 1))
    return values + 0.01 * RNG.normal(size=values.shape)


@pytest.mark.parametrize("how", SHOWN)
def test_structure_stays_where_it_is(how: How) -> None:
    pixels = np.asarray(map_picture(halves(), how, side=64)).astype(float)
    if how == "channels":
        pixels = pixels[:30, :30]
    middle = pixels.shape[1] // 2
    left, right = pixels[:, : middle - 2].mean((0, 1)), pixels[:, middle + 2 :].mean((0, 1))
    assert np.abs(left - right).max() > 60


def test_components_don_t_depend_on_sign_or_scale() -> None:
    values = halves()
    one = np.asarray(map_picture(values, "components"))
    other = np.asarray(map_picture(7 * values + 3, "components"))
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("how", SHOWN)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (64, 2, 2), (3, 7, 7)])
def test_any_shape_flat_or_not_finite(how: How, shape: tuple[int, int, int]) -> None:
    for values in (np.zeros(shape), np.full(shape, np.nan), RNG.normal(size=shape)):
        assert map_picture(values, how).size == (224, 224)


def test_a_page_keeps_stages_in_line() -> None:
    image = Image.new("RGB", (64, 64))
    stages = [MapOfStage(f"stride {4 << at}", RNG.normal(size=(8, 16 >> at, 16 >> at))) for at in range(4)]
    rows = [MapsOfModel("full", image, stages), MapsOfModel("coarse", image, stages[1:])]
    page = feature_sheet(rows, "components", title="Feature maps")
    one = np.asarray(feature_sheet(rows[:1], "components", title="Feature maps"))
    assert page.width == one.shape[1]
    assert page.height > one.shape[0]
