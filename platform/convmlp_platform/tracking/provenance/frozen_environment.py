"""The environment that computes: Python, installed packages with their versions, the processor and its instructions.

What torch says of itself is in it where the process has imported torch. Of the environment's variables only those named
here are in it, so no secret gets in.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES",
    "NCCL_ALGO", "NCCL_PROTO", "PYTHONHASHSEED",
)  # fmt: skip
"""They change how sums are taken."""
_INSTRUCTIONS = re.compile(r"sse4_[12]|avx\w*|fma|f16c|amx\w*|asimd\w*|sve\w*|bf16|i8mm|neon")
_INSTALLED = re.compile(r"(?P<name>[A-Za-z0-9][\w.]*)-(?P<version>[^-]+)\.dist-info")
CPUINFO = Path("/proc/cpuinfo")
_CPU_NAMES = ("model name", "Processor", "cpu model", "Model")


def frozen_environment() -> dict[str, Any]:
    """The environment of this process as plain JSON values.

    `python`: version, implementation. `system`: platform, machine. `cpu`: model, instructions, cores. `packages`:
    name → version. `torch`, `gpus`: where torch is imported, and CUDA is in use. `jpeg`: how training decodes, where
    images are read. `variables`: those that are set.
    """
    return {
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "system": {"platform": platform.platform(), "machine": platform.machine()},
        "cpu": {"model": cpu_model(), "instructions": cpu_instructions(), "cores": os.cpu_count()},
        "packages": installed_packages(),
        "torch": _torch(),
        "gpus": _gpus(),
        "jpeg": _jpeg(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def installed_packages() -> dict[str, str]:
    """Name (as pip writes it) → version of every package on the import path; of one that is there twice, the first."""
    found: dict[str, str] = {}
    for place in sys.path:
        try:
            names = os.listdir(place or ".")  # noqa: PTH208
        except OSError:  # a zip, or nothing
            continue
        for name in names:
            if (match := _INSTALLED.fullmatch(name)) is not None:
                found.setdefault(match["name"].replace("_", "-").lower(), match["version"])
    return dict(sorted(found.items()))


def requirements_text(packages: Mapping[str, str]) -> str:
    """The packages as pip's requirements."""
    return "".join(f"{name}=={version}\n" for name, version in packages.items())


def cpu_model() -> str:
    """The processor's name; "unknown" where the system doesn't say."""
    told = dict(_cpu_lines())
    return next((told[name] for name in _CPU_NAMES if told.get(name)), platform.processor() or "unknown")


def cpu_instructions(cpuinfo: Path = CPUINFO) -> list[str]:
    """The processor's vector instructions, as the system names them."""
    told = dict(_cpu_lines(cpuinfo))
    flags = (told.get("flags") or told.get("Features") or "").split()
    return sorted({flag for flag in flags if _INSTRUCTIONS.fullmatch(flag)})


def _cpu_lines(cpuinfo: Path = CPUINFO) -> list[tuple[str, str]]:
    """Linux's description of the first processor."""
    try:
        first = cpuinfo.read_text().partition("\n\n")[0]
    except OSError:
        return []
    return [
        (name.strip(), value.strip())
        for name, _, value in (line.partition(":") for line in first.splitlines())
    ]


def _torch() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "build": torch.__config__.show().splitlines(),
    }


def _gpus() -> list[str]:
    """The names of the GPUs in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _jpeg() -> str | None:
    boxes = sys.modules.get("data_prep.images.jpeg_box")
    return None if boxes is None else str(boxes.way_of_decoding())
