"""KubeRay's resource definition -> the part that cluster/kuberay-rayjob.yaml uses.

    cd tests/unit/cluster
    git -C KUBERAY show COMMIT:ray-operator/config/crd/bases/ray.io_rayjobs.yaml |
        python cut_schema.py COMMIT >rayjob-v1.schema.json

The definition has 1.4 MB. What the file does not reach keeps its name and type alone,
so that an unknown field is still told from a known one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_KEPT = ("type", "required", "enum", "minimum", "pattern", "additionalProperties")
_ROOT = Path(__file__).parents[3]
# Fields that the file's comments offer.
_OFFERED = {"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}


def cut(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """Return the schema as far as the values `used` go into it."""
    kept = {name: schema[name] for name in _KEPT if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    properties = schema.get("properties")
    if properties is not None:
        kept["additionalProperties"] = False
        kept["properties"] = {
            name: cut(inner, [value[name] for value in used if name in value])
            if any(name in value for value in used)
            else {"type": inner.get("type", ["integer", "string"])}
            for name, inner in sorted(properties.items())
        }
    if "items" in schema:
        entries = [entry for value in used for entry in value]
        kept["items"] = cut(schema["items"], entries)
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = cut(kept["additionalProperties"], [])
    return kept


def main() -> None:
    """Read the definition, write the cut schema."""
    crd = yaml.safe_load(sys.stdin)
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    job = yaml.safe_load((_ROOT / "cluster" / "kuberay-rayjob.yaml").read_text())
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        group["template"]["spec"]["containers"][0].update(_OFFERED)
    whole = {
        "$comment": "From ray-project/kuberay, Apache-2.0; made by cut_schema.py",
        "commit": sys.argv[1],
        **cut(schema, [job]),
    }
    print(json.dumps(whole, indent=0, sort_keys=True))


if __name__ == "__main__":
    main()
