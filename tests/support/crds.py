"""The schemas of the Prometheus Operator's custom resources, out of its Go module of a fixed version.

Kubernetes drops fields that a schema does not have, without an error. Here they are errors: a misspelled field would
otherwise be a route or a rule that does nothing.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

MODULE, VERSION = "github.com/prometheus-operator/prometheus-operator", "v0.92.1"
SUM = "h1:rHWuFo6SVya4FBSCNg2DCzyc4xAv54zk3eDTzp5mQZc="  # of the module's files, as in a go.sum
PRESERVED = "x-kubernetes-preserve-unknown-fields"
TIMEOUT_S = 300


def problems(resource: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a custom resource by the schema of its kind and version."""
    version = resource["apiVersion"].rpartition("/")[2]
    return [
        f"{'.'.join(str(step) for step in error.instance_path)}: {error.message}"
        for error in _validator(resource["kind"], version).iter_errors(dict(resource))
    ]


@functools.cache
def _validator(kind: str, version: str) -> Draft202012Validator:
    file = _module() / "jsonnet" / "prometheus-operator" / f"{kind.lower()}s-crd.json"
    definition = json.loads(file.read_text(encoding="utf-8"))
    (schema,) = [
        each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version
    ]
    return Draft202012Validator(_strict(schema))


@functools.cache
def _module() -> Path:
    """Return the directory of the module's files, which Go downloads once and checks; skip without Go or its proxy."""
    if shutil.which("go") is None:
        pytest.skip("needs Go, which downloads the schemas of the Prometheus Operator")
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"{MODULE}@{VERSION}"],
        cwd="/",  # no module of its own there
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    found = json.loads(done.stdout or "{}")
    if done.returncode:
        pytest.skip(f"needs Go's module proxy: {found.get('Error') or done.stderr}")
    assert found["Sum"] == SUM, f"{MODULE} {VERSION} has other files than expected"
    return Path(found["Dir"])


def _strict(schema: Any) -> Any:
    """Return a schema in which an object has no other fields than those named; OpenAPI's own words are replaced."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items() if key not in {"properties", "description", "default"}}
    if "properties" in schema:
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if made.get("type") == "object" and not {"additionalProperties", PRESERVED} & schema.keys():
            made["additionalProperties"] = False
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        made["type"] = [schema["type"], "null"]
    return made
