"""Boxes, masks and class areas drawn over images: plain arrays in, a new image out.

Used for what a dataset holds and for what a model predicts alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from convmlp_platform.pictures.style import PAPER, Color, font, ink_on

_TEXT = 12
_PADDING = 3
_MASK_OPACITY = 0.35
_AREA_OPACITY = 0.6
_SMALLEST_NAMED_AREA = 0.02
"""Share of the picture below which a class's area isn't named inside the picture."""
_SMALL_BOX = 2.0
"""A box of less than so many times a name's area would disappear under one: names stay off it."""
_DASH = 6
_EDGE: Color = (20, 22, 26)

Rectangle = tuple[float, float, float, float]


def draw_objects(
    image: Image.Image,
    boxes: NDArray[np.floating],
    names: Sequence[str],
    colors: Sequence[Color],
    masks: Sequence[NDArray[np.integer] | NDArray[np.bool_] | None] = (),
    *,
    dashed: Sequence[bool] = (),
    scale: float = 1.0,
) -> Image.Image:
    """Boxes with names, and masks with their outlines, over an image that is first enlarged by `scale`.

    Boxes without a name are allowed: an empty text draws none.

    Args:
        image: RGB.
        boxes: shape (n, 4), pixels of `image`: left, top, right, bottom (torchvision's xyxy).
        names: n texts; a name that would lie on another one or hide a small box is left out, its box's colour
            remains.
        colors: n colours.
        masks: none, or n arrays of shape (height, width), true or 1 on the object; None where an object has no mask.
        dashed: none, or n values: broken lines, and no mask.
        scale: drawing after enlarging keeps lines and letters sharp.
    """
    picture = resized(image, scale)
    broken = [*dashed, *[False] * (len(names) - len(dashed))]
    order = np.argsort([-(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes], kind="stable").tolist()
    for i in order:
        if i < len(masks) and (mask := masks[i]) is not None and not broken[i]:
            _blend_mask(picture, mask, colors[i])
    draw = ImageDraw.Draw(picture)
    corners = {i: _inside(picture, boxes[i] * scale) for i in order}
    for i in order:
        _outline(draw, corners[i], colors[i], broken[i])
    taken: list[Rectangle] = []
    for i in order:
        if not names[i]:
            continue
        small = [
            box for box in corners.values() if _area(box) < _SMALL_BOX * _area((0, 0, *_tag_size(names[i])))
        ]
        place = _place(corners[i], names[i], picture.size, [*taken, *small])
        if place is not None:
            taken.append(place)
            _tag(draw, place, names[i], colors[i])
    return picture


def draw_classes(
    image: Image.Image,
    labels: NDArray[np.integer],
    names: Sequence[str],
    colors: Sequence[Color],
    *,
    scale: float = 1.0,
    opacity: float = _AREA_OPACITY,
) -> Image.Image:
    """An image under the colours of its pixels' classes; large areas carry their class's name.

    Args:
        image: RGB.
        labels: shape (height, width); 0..n-1, anything else is left as it is (ignored pixels).
        names: n class names; an empty one is not written.
        colors: n colours.
        scale: the image is enlarged by it first.
        opacity: of the colours, 0..1.
    """
    picture = resized(image, scale)
    shown = _nearest(labels, picture.size)
    known = (shown >= 0) & (shown < len(names))
    table = np.array([*colors, (0, 0, 0)], np.uint8)
    paint = Image.fromarray(table[np.where(known, shown, len(names))])
    alpha = Image.fromarray(np.where(known, round(255 * opacity), 0).astype(np.uint8))
    picture.paste(paint, (0, 0), alpha)
    draw = ImageDraw.Draw(picture)
    taken: list[Rectangle] = []
    counts = np.bincount(shown[known].ravel(), minlength=len(names))
    for label in np.argsort(-counts, kind="stable").tolist():
        if counts[label] < _SMALLEST_NAMED_AREA * shown.size:
            break
        if not names[label]:
            continue
        x, y = _middle(shown == label)
        width, height = _tag_size(names[label])
        place = _shifted((x - width / 2, y - height / 2, x + width / 2, y + height / 2), picture.size)
        if not any(_overlap(place, other) for other in taken):
            taken.append(place)
            _tag(draw, place, names[label], colors[label])
    return picture


def resized(image: Image.Image, scale: float) -> Image.Image:
    """A copy of an RGB image, `scale` times as large; pixels stay visible where tiny images are enlarged."""
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size == image.size:
        return image.convert("RGB").copy()
    method = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, method)


def _nearest(labels: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.int64]:
    """Labels at another (width, height), each from the pixel nearest to it."""
    width, height = size
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    columns = (np.arange(width) + 0.5) * labels.shape[1] / width
    return labels[np.ix_(rows.astype(np.int64), columns.astype(np.int64))].astype(np.int64)


def _blend_mask(picture: Image.Image, mask: NDArray[np.integer] | NDArray[np.bool_], color: Color) -> None:
    """Tint the mask's area, and draw its smoothed outline."""
    area = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste(color, (0, 0), area.point(lambda value: round(value * _MASK_OPACITY)))
    wide, narrow = area.filter(ImageFilter.MaxFilter(3)), area.filter(ImageFilter.MinFilter(3))
    picture.paste(color, (0, 0), ImageChops.subtract(wide, narrow))


def _middle(area: NDArray[np.bool_]) -> tuple[float, float]:
    """The point (x, y) farthest inside an area, so that a name there lies on it."""
    from scipy.ndimage import distance_transform_edt

    step = max(1, max(area.shape) // 128)
    small = np.pad(area[::step, ::step], 1)
    row, column = np.unravel_index(int(np.argmax(distance_transform_edt(small))), small.shape)
    return float((column - 0.5) * step), float((row - 0.5) * step)


def _inside(picture: Image.Image, box: NDArray[np.floating]) -> Rectangle:
    x0, y0, x1, y1 = box.tolist()
    right, bottom = picture.width - 1, picture.height - 1
    x0, y0 = min(max(x0, 0), right), min(max(y0, 0), bottom)
    return x0, y0, max(min(x1, right), x0), max(min(y1, bottom), y0)


def _outline(draw: ImageDraw.ImageDraw, box: Rectangle, color: Color, broken: bool) -> None:
    """Two pixels of colour: with a dark edge, but for tiny boxes, so that it is seen on any ground; or in turn with
    white."""
    x0, y0, x1, y1 = box
    if not broken:
        if min(x1 - x0, y1 - y0) >= _TEXT:
            draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_EDGE)
        draw.rectangle(box, outline=color, width=2)
        return
    for start, end in (
        ((x0, y0), (x1, y0)),
        ((x1, y0), (x1, y1)),
        ((x1, y1), (x0, y1)),
        ((x0, y1), (x0, y0)),
    ):
        draw.line((*start, *end), fill=PAPER, width=2)
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        steps = [min(1.0, at / max(length, 1.0)) for at in np.arange(0, length + _DASH, _DASH)]
        for first, last in zip(steps[::2], steps[1::2], strict=False):
            ends = [
                (start[axis] + share * (end[axis] - start[axis]))
                for share in (first, last)
                for axis in (0, 1)
            ]
            draw.line(ends, fill=color, width=2)


def _area(box: Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _tag_size(text: str) -> tuple[float, float]:
    return font(_TEXT).getlength(text) + 2 * _PADDING, _TEXT + 2 * _PADDING


def _place(box: Rectangle, text: str, size: tuple[int, int], taken: Sequence[Rectangle]) -> Rectangle | None:
    """Returns the place of a box's name: above it, inside at its top, below it, inside at its bottom, beside it; the
    first that is free, or None."""
    width, height = _tag_size(text)
    x0, y0, x1, y1 = box
    above_or_in = [(x0, y0 - height), (x0, y0), (x0, y1 + 1), (x0, y1 - height)]
    for left, top in [*above_or_in, (x1 + 1, y0), (x0 - width - 1, y0)]:
        if top < 0 or top + height > size[1]:
            continue
        place = _shifted((left, top, left + width, top + height), size)
        if not any(_overlap(place, other) for other in taken):
            return place
    return None


def _shifted(place: Rectangle, size: tuple[int, int]) -> Rectangle:
    """The rectangle moved into the picture."""
    x0, y0, x1, y1 = place
    dx = max(0.0, -x0) - max(0.0, x1 - size[0])
    dy = max(0.0, -y0) - max(0.0, y1 - size[1])
    return x0 + dx, y0 + dy, x1 + dx, y1 + dy


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _tag(draw: ImageDraw.ImageDraw, place: Rectangle, text: str, color: Color) -> None:
    draw.rectangle(place, fill=color)
    x0, y0, _, _ = place
    draw.text((x0 + _PADDING, y0 + _PADDING - 1), text, fill=ink_on(color), font=font(_TEXT))
