"""The parts that all sections of a job file are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Channels = tuple[float, float, float]
LEAST_STD = 1e-4
_Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
_Std = Annotated[float, Field(ge=LEAST_STD, le=1e3)]
Mean = tuple[_Mean, _Mean, _Mean]
"""Of red, green and blue, of pixels in 0..1."""
Std = tuple[_Std, _Std, _Std]
"""As `Mean`; pixels are divided by it."""
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]

ClassPath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=256)]
"""A class by the module it is in: `package.module:Class`."""

AUTO = "auto"
"""Word that may be written for some values, which then follow from the dataset (`config.automatic`) or from the
machines (`launch.cluster.machine_values`)."""


def also_auto(schema: dict[str, Any]) -> None:
    """Let the JSON schema of a field take `auto`, too (`json_schema_extra`)."""
    about = ("title", "description", "default")
    kinds = {key: schema.pop(key) for key in list(schema) if key not in about}
    schema["anyOf"] = [*kinds.get("anyOf", [kinds]), {"const": AUTO}]


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
