"""Segmentation masks: 8-bit PNG files whose pixels are class numbers, 0 = ignore, 1..n the classes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.errors import RejectedSample
from data_prep.images.image_file import expect_usual_size
from data_prep.images.png import SIGNATURE, check_png, expect_affordable_png

_SHOWN = 5
_MODES = ("L", "P")
"""Greyscale, and palette images, whose indices are the classes: publishers colour masks so."""


def read_mask(content: bytes) -> NDArray[np.uint8]:
    """Values by pixel, shape (height, width).

    Raises:
        RejectedSample: it is not an intact 8-bit greyscale or palette PNG.
    """
    return np.asarray(_open(content), np.uint8)


def check_mask(content: bytes, num_classes: int) -> None:
    """Are all pixels 0 or a class?

    Raises:
        RejectedSample: a value is larger than `num_classes`, or it is not a mask.
    """
    check_values(read_mask(content), num_classes)


def check_values(values: NDArray[np.uint8], num_classes: int) -> None:
    """As `check_mask`, of the values themselves.

    Raises:
        RejectedSample: which values are none, and where the first of them is.
    """
    if int(values.max()) <= num_classes:
        return
    row, column = np.argwhere(values > num_classes)[0].tolist()
    first = int(values[row, column])
    others = [value for value in np.unique(values[values > num_classes]).tolist() if value != first]
    more = (
        f" (also {', '.join(map(str, others[:_SHOWN]))}{', ...' * (len(others) > _SHOWN)})" if others else ""
    )
    raise RejectedSample(
        f"the mask has value {first} at row {row}, column {column}{more}: it is none of 0 (ignored) and the "
        f"{num_classes} classes 1 to {num_classes}; give such pixels 0 or a class, or add the class to the table"
    )


def resize_mask(content: bytes, width: int, height: int) -> bytes:
    """The mask at another size, by nearest neighbours; untouched if it has that size.

    Raises:
        RejectedSample: it is not a mask.
    """
    image = _open(content)
    if image.size == (width, height):
        return content
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def _open(content: bytes) -> Image.Image:
    try:
        if content.startswith(SIGNATURE):
            expect_usual_size(*expect_affordable_png(content))
            check_png(content)
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        image.load()
    except RejectedSample as error:
        raise RejectedSample(f"the mask: {error}") from None
    except Exception as error:  # Pillow's decoder raises nearly any type on damaged files
        raise RejectedSample(f"the mask is not an intact PNG file: {type(error).__name__}") from None
    if image.mode in ("1", "L") and (depth := content[24]) < 8:
        # Pillow spreads grey of 1, 2 and 4 bits over 0..255: class 1 of 4 bits would be 17.
        return image.convert("L").point([value // (255 // ((1 << depth) - 1)) for value in range(256)])
    if image.mode not in _MODES:
        raise RejectedSample(f"the mask's mode is {image.mode}, expected 8-bit greyscale (L) or palette (P)")
    return image
