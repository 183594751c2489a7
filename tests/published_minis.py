"""Made-up datasets in the layouts of their publishers, byte-alike where it matters, a few images each."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prep_helpers import image_bytes, smooth_image
from scipy.io import savemat

WNIDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n02113186": "Cardigan, Cardigan Welsh corgi",
    "n03126707": "crane",
    "n03710637": "maillot",
    "n03710721": "maillot, tank suit",
}
CLASSES = ["tench", "crane (n02012849)", "Cardigan", "crane (n03126707)"]
CLASSES += ["maillot (n03710637)", "maillot (n03710721)"]


def write_tar(
    path: Path | io.BytesIO, files: Mapping[str, bytes], *, mode: str = "w", kind: int = tarfile.GNU_FORMAT
) -> None:
    """A tar of regular files, in their order."""
    target = {"fileobj": path} if isinstance(path, io.BytesIO) else {"name": path}
    with tarfile.open(mode=mode, format=kind, **target) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def tar_bytes(files: Mapping[str, bytes], **settings: Any) -> bytes:
    buffer = io.BytesIO()
    write_tar(buffer, files, **settings)
    return buffer.getvalue()


class MiniImageNet:
    """Three train images a class and two validation images a class; the devkit numbers classes its own way."""

    def __init__(self, images: Mapping[str, bytes] | None = None, wnids: Mapping[str, str] = WNIDS) -> None:
        self.wnids = dict(wnids)
        self.ids = {wnid: 1 + (7 * i) % len(self.wnids) for i, wnid in enumerate(sorted(self.wnids))}
        self.train = images or {
            f"{wnid}_{number}.JPEG": image_bytes(smooth_image(10 * i + number))
            for i, wnid in enumerate(self.wnids)
            for number in range(3)
        }
        val = sorted(self.wnids, key=lambda wnid: self.ids[wnid] % 3) * 2
        self.val_wnid = {f"ILSVRC2012_val_{i:08d}.JPEG": wnid for i, wnid in enumerate(val, 1)}
        self.val = {
            name: image_bytes(smooth_image(500 + i), "PNG" if i == 3 else "JPEG")  # n02105855_2933 is a PNG
            for i, name in enumerate(self.val_wnid)
        }

    def tars(self, root: Path) -> Path:
        root.mkdir(parents=True)
        inner = {
            f"{wnid}.tar": tar_bytes({n: c for n, c in self.train.items() if n.startswith(wnid)})
            for wnid in reversed(self.wnids)
        }
        write_tar(root / "ILSVRC2012_img_train.tar", inner)
        write_tar(root / "ILSVRC2012_img_val.tar", dict(reversed(self.val.items())))
        name = "ILSVRC2012_devkit_t12"
        truth = "".join(f"{self.ids[wnid]}\n" for wnid in self.val_wnid.values()).encode()
        files = {
            f"{name}/readme.txt": b"hello",
            f"{name}/data/meta.mat": self._meta(),
            f"{name}/data/ILSVRC2012_validation_ground_truth.txt": truth,
        }
        write_tar(root / f"{name}.tar.gz", files, mode="w:gz")
        return root

    def folders(self, root: Path) -> Path:
        for name, content in self.train.items():
            _write(root / "train" / name.split("_")[0] / name, content)
        for name, content in self.val.items():
            _write(root / "val" / self.val_wnid[name] / name, content)
        return root

    def kaggle(self, root: Path) -> Path:
        data = root / "ILSVRC" / "Data" / "CLS-LOC"
        for name, content in self.train.items():
            _write(data / "train" / name.split("_")[0] / name, content)
        for name, content in self.val.items():
            _write(data / "val" / name, content)
        rows = [f"{n.removesuffix('.JPEG')},{wnid} 85 1 499 272 \n" for n, wnid in self.val_wnid.items()]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))
        lines = [f"{wnid} {names}\n" for wnid, names in self.wnids.items()]
        (root / "LOC_synset_mapping.txt").write_text("".join(lines))
        return root

    def _meta(self) -> bytes:
        """The devkit's struct array: leaves first, then an inner node of WordNet's tree."""
        kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
        rows = [(number, wnid, self.wnids[wnid], "a thing", 0) for wnid, number in self.ids.items()]
        rows.sort()
        rows.append((len(rows) + 1, "n00001740", "entity", "that which is", 2))
        buffer = io.BytesIO()
        savemat(buffer, {"synsets": np.array(rows, dtype=kind)[:, None]})
        return buffer.getvalue()


def python2_pickle(content: Mapping[str, Any]) -> bytes:
    """What Python 2's cPickle writes with protocol 2 for a dictionary of strings, lists and uint8 arrays: its
    strings are byte strings, and arrays come from numpy.core.multiarray."""
    body = b"".join(_python2(key) + _python2(value) + b"s" for key, value in content.items())
    return b"\x80\x02}" + body + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return (
            b"U" + bytes([len(text)]) + text
            if len(text) < 256
            else b"T" + struct.pack("<i", len(text)) + text
        )
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    return _python2_array(value)


def _python2_array(value: NDArray[np.uint8]) -> bytes:
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(_python2(size) for size in value.shape) + b"\x86"
    content = b"T" + struct.pack("<i", value.nbytes) + value.tobytes()
    return reconstruct + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


def cifar10_files(per_batch: int = 4) -> dict[str, bytes]:
    """The published layout with made-up pixels."""
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files: dict[str, dict[str, Any]] = {
        "batches.meta": {"num_cases_per_batch": per_batch, "label_names": ["airplane", "automobile", "bird"]}
    }
    for name in names:
        files[name] = {
            "batch_label": name,
            "labels": [i % 3 for i in range(per_batch)],
            "data": rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            "filenames": [f"thing_s_{i:06d}.png" for i in range(per_batch)],
        }
    return {name: python2_pickle(content) for name, content in files.items()}


def cifar100_files(train: int = 12, test: int = 6) -> dict[str, bytes]:
    """The published layout with six fine and two coarse classes."""
    rng = np.random.default_rng(1)
    fine, coarse = [f"fine {i}" for i in range(6)], ["mammals", "fish"]
    files: dict[str, dict[str, Any]] = {"meta": {"fine_label_names": fine, "coarse_label_names": coarse}}
    for name, count in (("train", train), ("test", test)):
        files[name] = {
            "filenames": [f"thing_s_{i:06d}.png" for i in range(count)],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": [i % 6 for i in range(count)],
            "coarse_labels": [i % 6 // 3 for i in range(count)],
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
    return {name: python2_pickle(content) for name, content in files.items()}


STL10_CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def stl10_files(train: int = 11, test: int = 13) -> tuple[dict[str, bytes], dict[str, NDArray[np.uint8]]]:
    """The binary files, and the pixels (height, width, 3) that they stand for."""
    rng = np.random.default_rng(2)
    files = {"class_names.txt": "".join(f"{name}\n" for name in STL10_CLASSES).encode()}
    pixels = {}
    for part, count in (("train", train), ("test", test)):
        pixels[part] = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        files[f"{part}_X.bin"] = pixels[part].transpose(0, 3, 2, 1).tobytes()  # colour, column, row
        files[f"{part}_y.bin"] = bytes(1 + i % 10 for i in range(count))
    return files, pixels


def flowers102_files(count: int = 9) -> dict[str, bytes]:
    """The archive and both MATLAB files for a few flowers."""
    images = {f"jpg/image_{i:05d}.jpg": image_bytes(smooth_image(i)) for i in range(1, count + 1)}
    ids = np.arange(1, count + 1)
    third = count // 3
    return {
        "102flowers.tgz": gzip.compress(tar_bytes(images)),
        "imagelabels.mat": mat_bytes(labels=1 + (ids * 11) % 102),
        "setid.mat": mat_bytes(trnid=ids[::3][:third], valid=ids[1::3][:third], tstid=ids[2::3]),
    }


def mat_bytes(**variables: Sequence[int] | NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        _write(folder / name, content)
    return folder


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
