"""CustomResourceDefinitions as strict JSON schemas: what the API server would prune or refuse is an error.

Checks structure and types, not CEL rules (`x-kubernetes-validations`): those need the API server.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Schema = dict[str, Any]


# The schemas are megabytes: libyaml reads them in a tenth of the time, where PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def load_schemas(folder: Path) -> dict[tuple[str, str], Schema]:
    """`(apiVersion, kind)` → strict schema, for each served version of each CRD file `*.yaml` in `folder`."""
    schemas = {}
    for path in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(path.read_text(), Loader=_LOADER):
            if not isinstance(crd, dict) or crd.get("kind") != "CustomResourceDefinition":
                continue
            group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
            for version in crd["spec"]["versions"]:
                if version["served"]:
                    schema = strict(version["schema"]["openAPIV3Schema"])
                    # The API server checks the root's metadata against ObjectMeta, not against the CRD.
                    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
                    schema["required"] = ["apiVersion", "kind", "metadata", *schema.get("required", [])]
                    schemas[f"{group}/{version['name']}", kind] = schema
    return schemas


def strict(schema: Schema) -> Schema:
    """An OpenAPI v3 structural schema as a JSON schema that refuses unknown fields."""
    result = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    open_object = schema.get("x-kubernetes-preserve-unknown-fields") is True
    if "properties" in schema:
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        result["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    elif schema.get("type") == "object" and not open_object:
        result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string") is True:
        result["type"] = ["integer", "string"]
    if schema.get("nullable") is True and "type" in result:
        types = result["type"] if isinstance(result["type"], list) else [result["type"]]
        result["type"] = [*types, "null"]
    return result


def problems(document: Schema, schema: Schema) -> list[str]:
    """What is wrong with `document`, one line each: `spec.a.0.b: message`. Empty when it is valid."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path)) or '(root)'}: {error.message}" for error in errors]
