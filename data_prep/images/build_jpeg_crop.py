"""The part of the build that may fail: compiles `_convmlp_jpeg` where a compiler and libjpeg-turbo's header are.

Without them the package is pure Python, and data_prep/images/jpeg_box.py decodes the rows down to a crop's last.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "data_prep/images/jpeg_crop.c"


class JpegCropHook(BuildHookInterface):
    """Adds the compiled module to the wheel, beside the packages (so that an editable install has it too)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling; `version` is "standard" or "editable"."""
        self._scratch = tempfile.TemporaryDirectory()
        try:
            module = _compiled(Path(self.root, SOURCE), self._scratch.name)
        except Exception as error:  # whatever compilers and setuptools raise; SystemExit isn't among it
            self.app.display_warning(f"_convmlp_jpeg is left out, photographs are read slower: {error}")
            return
        # The wheel stays one for any machine: its name lets only the interpreter and system that it fits find it.
        build_data["force_include"][str(module)] = module.name

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """See hatchling."""
        self._scratch.cleanup()


def _compiled(source: Path, folder: str) -> Path:
    """The shared library that is the module."""
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    extension = Extension("_convmlp_jpeg", [str(source)], libraries=["jpeg"], extra_compile_args=["-O2"])
    command = build_ext(Distribution({"name": "convmlp-jpeg", "ext_modules": [extension]}))
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    return Path(folder, command.get_ext_filename(extension.name))
