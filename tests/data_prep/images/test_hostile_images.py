"""Image files made to harm, at the three doors: preparation, prediction, and the reader of training."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import outcomes
from odd_files import png, saved
from PIL import Image
from prep_helpers import image_bytes, smooth_image

from convmlp_platform.errors import DataError
from convmlp_platform.models.predictors.given_images import open_image

SMALL = image_bytes(smooth_image(0, (90, 80)))
LOSSLESS = image_bytes(smooth_image(0, (90, 80)), "PNG")


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def with_chunks(*chunks: bytes) -> bytes:
    """A good PNG with more chunks behind its header."""
    return LOSSLESS[:33] + b"".join(chunks) + LOSSLESS[33:]


def endless_zeros(mebibytes: int) -> bytes:
    """A zlib stream that never ends and unpacks to so much; a mebibyte takes a kilobyte."""
    packer = zlib.compressobj(9)
    first, more = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + more * (mebibytes - 1)


def jpeg(size: tuple[int, int], **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (640, 64)).save(buffer, "JPEG", **settings)
    content = bytearray(buffer.getvalue())
    frame = next(i for i in range(len(content)) if content[i] == 0xFF and content[i + 1] in (0xC0, 0xC2))
    content[frame + 5 : frame + 9] = struct.pack(">HH", size[1], size[0])
    return bytes(content)


def many_scans(content: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan is there so many times more."""
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + content[-2:]


def segment(code: int, body: bytes) -> bytes:
    return b"\xff" + bytes([code]) + (len(body) + 2).to_bytes(2) + body


def exif_of_entries(size: int) -> bytes:
    """As many entries as fit, each of which names all of it."""
    count = min(65535, size // 12 - 2)
    entries = b"".join(struct.pack("<HHII", 60000 - i % 50000, 7, size - 8, 8) for i in range(count))
    return (b"II*\0" + struct.pack("<IH", 8, count) + entries).ljust(size, b"\0")


def bmp(width: int, height: int, compression: int = 0) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 2000, 0, 0, 54 + 1024) + head + bytes(1024) + bytes(100)


def webp(kind: bytes, body: bytes) -> bytes:
    chunks = kind + len(body).to_bytes(4, "little") + body
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000)))
ONE_TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))
LARGER = chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))
MUCH_EXIF = segment(0xE1, b"Exif\0\0" + exif_of_entries(65_000)) * 100
NO_PIXELS = chunk(b"IDAT", zlib.compress(b""))
NOT_OURS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    "EPS of Windows": b"\xc5\xd0\xd3\xc6" + bytes(100),
    "GIF": image_bytes(smooth_image(0).convert("P"), "GIF"),
    "TIFF": image_bytes(smooth_image(0), "TIFF"),
    "ICNS": b"icns" + bytes(100),
    "ICO": image_bytes(smooth_image(0), "ICO"),
    "PDF": b"%PDF-1.7",
    "PSD": b"8BPS\0\1" + bytes(100),
    "DDS": b"DDS |\0\0\0" + b"\xff" * 150,
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
    "JPEG 2000": image_bytes(smooth_image(0), "JPEG2000"),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(100),
    "FITS": b"SIMPLE  = T".ljust(2880),
    "XBM": b"#define a_width 90000\n#define a_height 90000\nstatic char a_bits[] = {\n",
    "PPM": b"P6 9000 9000 255\n",
    "bytes": bytes(1000),
}
REFUSED = {
    "a PNG of 4 GiB": png(8, 8, 8, 2, b"").replace(NO_PIXELS, chunk(b"IDAT", endless_zeros(4096))),
    "a PNG of many parts that go on": LOSSLESS[:33] + chunk(b"IDAT", endless_zeros(1)) * 900 + LOSSLESS[33:],
    "4,000 colour profiles": with_chunks(PROFILE * 4_000),
    "profiles behind the pixels": LOSSLESS[:-12] + PROFILE * 4_000 + LOSSLESS[-12:],
    "a colour profile of 1 GiB": with_chunks(chunk(b"iCCP", b"a\0\0" + endless_zeros(1024))),
    "a text of 1 GiB": with_chunks(chunk(b"zTXt", b"a\0\0" + endless_zeros(1024))),
    "100 texts of 1 MB": with_chunks(ONE_TEXT * 100),
    "two headers": with_chunks(LOSSLESS[8:33]),
    "a header behind the pixels": LOSSLESS[:-12] + LARGER + LOSSLESS[-12:],
    "no header": LOSSLESS[:8] + LOSSLESS[33:],
    "a signature": LOSSLESS[:8],
    "a PNG of 2^31 pixels a side": png(1 << 31, 1 << 31, 16, 6, b""),
    "a PNG of 90 megapixels": png(9_000, 10_000, 1, 0, b""),
    "1 kB of JPEG for 81 megapixels": jpeg((9_000, 9_000)),
    "1 kB of progressive JPEG": jpeg((9_000, 9_000), progressive=True),
    "1 kB of grey JPEG": jpeg((65_500, 1_300)),
    "a JPEG of 4 gigapixels": jpeg((65_500, 65_500)),
    "a JPEG of 200 scans": many_scans(image_bytes(Image.new("RGB", (2_000, 2_000))), 200),
    "a progressive JPEG of 2,000 scans": many_scans(jpeg((640, 64), progressive=True), 2_000),
    "the beginning of a JPEG": b"\xff\xd8\xff",
    "a JPEG of markers": b"\xff\xd8" + b"\xff\xda\x00\x02" * 500_000,
    "WebP, extended": webp(b"VP8X", bytes(4) + b"\xff" * 6),
    "WebP, lossless": webp(b"VP8L", b"\x2f" + b"\xff" * 4 + bytes(20)),
    "WebP, lossy": webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20)),
    "a BMP of 2^31 pixels a side": bmp(0x7FFFFFFF, 0x7FFFFFFF),
    "a BMP of 81 megapixels": bmp(9_000, 9_000),
    "a packed BMP of 81 megapixels": bmp(9_000, 9_000, compression=1),
    "an empty file": b"",
} | {f"{name} is none of ours": content for name, content in NOT_OURS.items()}  # fmt: skip
READ = {
    "a JPEG with pictures behind it": SMALL + SMALL * 200,
    "a JPEG with scans in its metadata": SMALL[:2] + segment(0xE1, b"\xff\xda" * 30_000) + SMALL[2:],
    "a progressive JPEG": saved(smooth_image(0, (90, 80)), "JPEG", progressive=True),
    "a colour profile": with_chunks(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000)))),
    "rows and a little more": png(9, 7, 8, 2, bytes(7 * 28 + 100)),
    "EXIF that names itself": with_chunks(chunk(b"eXIf", exif_of_entries(1 << 20))),
    "EXIF of a JPEG that names itself": SMALL[:2] + segment(0xE1, b"Exif\0\0" + exif_of_entries(65_500)) + SMALL[2:],
    "EXIF in many segments": SMALL[:2] + MUCH_EXIF + SMALL[2:],
    "EXIF in many segments of an unusual JPEG": SMALL[:20] + MUCH_EXIF + bytes(9) + SMALL[20:],
    "a table of pictures that names itself": SMALL[:2] + segment(0xE2, b"MPF\0" + exif_of_entries(65_500)) + SMALL[2:],
    "EXIF of nothing": with_chunks(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
    "a BMP": image_bytes(smooth_image(0), "BMP"),
    "a WebP": image_bytes(smooth_image(0), "WEBP"),
}  # fmt: skip
DOORS = {
    "preparation": (
        "from data_prep.images.check_image import RejectedImage, Steps, store_image",
        "store_image(path.read_bytes(), Steps(None, 'decode', for_ffcv=True), histogram=False)",
        "RejectedImage",
    ),
    "headers only": (
        "from data_prep.images.check_image import RejectedImage, Steps, store_image",
        "store_image(path.read_bytes(), Steps(None, 'headers', for_ffcv=False), histogram=False)",
        "RejectedImage",
    ),
    "prediction": (
        "from convmlp_platform.errors import DataError\n"
        "from convmlp_platform.models.predictors.given_images import open_image",
        "open_image(path)",
        "DataError",
    ),
    "training": (
        "from convmlp_platform.data.dataset.split import decode",
        "decode(path.read_bytes())",
        "(OSError, ValueError, SyntaxError)",
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    named = {label: folder / str(number) for number, label in enumerate(REFUSED | READ)}
    for label, content in (REFUSED | READ).items():
        named[label].write_bytes(content)
    return named


@pytest.mark.parametrize("door", DOORS)
def test_images_that_harm(files: dict[str, Path], door: str) -> None:
    if door == "training":  # of checked samples: what is damaged costs no more than an image of its size
        files = {
            label: path for label, path in files.items() if "megapixels" not in label and "1 kB" not in label
        }
    found = outcomes(files, *DOORS[door], seconds=20, quiet=True)
    assert list(found) == list(files)
    accepted = {label for label, message in found.items() if message == "accepted"}
    if door in ("preparation", "prediction"):
        assert accepted == set(READ)
        assert max(map(len, found.values())) < 500
        foreign = [found[f"{name} is none of ours"] for name in NOT_OURS]
        assert all(message.endswith("not a JPEG, PNG, BMP or WebP image") for message in foreign)
    else:
        assert accepted >= set(READ)
        assert not accepted & {f"{name} is none of ours" for name in NOT_OURS}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turn", range(10))
def test_orientation_as_pillow_reads_it(turn: int, order: str) -> None:
    from PIL import ImageOps

    image = smooth_image(0, (12, 7))
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112], exif[0x010F] = turn, "maker"
    for kind in ("PNG", "WEBP", "JPEG"):
        buffer = io.BytesIO()
        image.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        with Image.open(io.BytesIO(buffer.getvalue())) as stored:
            expected = ImageOps.exif_transpose(stored).convert("RGB")
        np.testing.assert_array_equal(np.asarray(open_image(buffer.getvalue())), np.asarray(expected))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", xmp=b'<x tiff:Orientation="6"/>')
    assert open_image(buffer.getvalue()).size == (7, 12)


def test_predictions_see_16_bits_as_preparation_stores_them(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) << 8
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert np.asarray(open_image(buffer.getvalue()))[..., 0].tolist() == (values >> 8).tolist()
    (tmp_path / "cut.jpg").write_bytes(SMALL[:-100])
    with pytest.raises(DataError, match=r"cut\.jpg: not a readable image: damaged JPEG data"):
        open_image(tmp_path / "cut.jpg")


def test_no_door_is_without_limits() -> None:
    """Nothing of the product opens an image by Pillow's own idea of its format."""
    root = Path(__file__).parents[3]
    sources = [
        path for folder in ("convmlp", "data_prep", "platform") for path in (root / folder).rglob("*.py")
    ]
    calls = [
        call
        for path in sources
        for call in re.findall(r"Image\.open\((?:[^()]|\([^()]*\))*\)", path.read_text())
    ]
    assert calls and all("formats=" in call for call in calls), calls
