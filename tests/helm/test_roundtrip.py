"""What KubeRay's operator writes back is what the chart rendered.

The operator reads an object into Go structs and writes it whole (it adds a finalizer). Where that
changes the list of worker groups, the list is the operator's from then on, and the next
`helm upgrade` of Helm 4, which applies on the server, ends with a conflict. So the chart renders
what comes out of: the defaults of the CRD, structs that Go writes though they are empty, and
quantities in their canonical form (k8s.io/apimachinery, resource.Quantity).
"""

import copy
from collections.abc import Iterator
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.conftest import CI, INDEX, Helm
from tests.helm.test_schemas import K8S, KUBERAY

ODD = (
    "--set=tmpSizeLimit=0.5Ti,serve.workerGroups.cpu.resources.limits.cpu=2500m,"
    "serve.workerGroups.cpu.resources.limits.memory=3072.5Mi,"
    "serve.workerGroups.cpu.resources.requests.cpu=0.25,"
    "serve.workerGroups.cpu.resources.requests.memory=2000M,"
    "serve.workerGroups.cpu.resources.limits.nvidia\\.com/gpu=1"
)
QUANTITIES = {
    "1024Mi": "1Gi", "1536Mi": "1536Mi", "0.5": "500m", "1000m": "1", "1500m": "1500m", "2": "2",
    "0.5Gi": "512Mi", "2000M": "2G", "1.5": "1500m", "0": "0", "3000": "3k", "1025Ki": "1025Ki",
}  # fmt: skip
_DECIMAL = {"m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_BINARY = {"": 0, "Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5}


def canonical(quantity: Any) -> str:
    """As resource.Quantity writes it: the largest unit of its kind that leaves a whole number."""
    text = str(quantity)
    number = text.rstrip("".join({*"".join(_DECIMAL), *"".join(_BINARY)}))
    unit = text[len(number) :]
    powers, step = (_BINARY, 1024) if unit.endswith("i") else (_DECIMAL, 1000)
    amount = Decimal(number) * Decimal(step) ** powers[unit]
    if not amount:
        return "0"
    for name, power in sorted(powers.items(), key=lambda item: -item[1]):
        if amount % Decimal(step) ** power == 0:
            return f"{int(amount / Decimal(step) ** power)}{name}"
    return f"{int((amount * 1000).to_integral_value(ROUND_CEILING))}m"


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """`value` with the defaults of its schema, as the API server fills them."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found = dict(value)
        for name, inner in properties.items():
            if name not in found and "default" in inner:
                found[name] = copy.deepcopy(inner["default"])
        other = schema.get("additionalProperties")
        return {
            name: defaulted(each, properties.get(name, other if isinstance(other, dict) else {}))
            for name, each in found.items()
        }
    if isinstance(value, list):
        return [defaulted(each, schema.get("items", {})) for each in value]
    return value


def rewritten(value: Any, name: str = "") -> Any:
    """`value` as it comes out of Go's structs."""
    if isinstance(value, dict):
        if name in ("limits", "requests"):
            return {key: canonical(amount) for key, amount in value.items()}
        return {key: rewritten(each, key) for key, each in value.items()}
    if isinstance(value, list):
        items = [rewritten(each, name) for each in value]
        for item in items:
            if name == "workerGroupSpecs":
                item.setdefault("scaleStrategy", {})
            if name in ("containers", "initContainers"):
                item.setdefault("resources", {})
        return items
    return canonical(value) if name == "sizeLimit" else value


def empties(value: Any, path: str = "") -> Iterator[str]:
    """Where something is empty: Go leaves most of that out."""
    if isinstance(value, dict | list) and not value:
        yield path
    for key, each in value.items() if isinstance(value, dict) else ():
        yield from empties(each, f"{path}.{key}")
    for each in value if isinstance(value, list) else ():
        yield from empties(each, f"{path}[]")


@pytest.fixture(scope="session")
def schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """The schema of each kind, by KubeRay's version and the kind."""
    found = {}
    for version in KUBERAY:
        folder: Path = K8S / "crds" / f"kuberay-v{version}"
        if not folder.is_dir():
            pytest.skip(f"{folder} is absent: no CRD schemas")
        for file in folder.glob("*.yaml"):
            for document in yaml.safe_load_all(file.read_text()):
                for served in document["spec"]["versions"]:
                    if served["name"] == "v1":
                        kind = document["spec"]["names"]["kind"]
                        found[version, kind] = served["schema"]["openAPIV3Schema"]
    return found


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_quantities_are_canonical(helm4: Helm, quantity: str) -> None:
    assert canonical(quantity) == QUANTITIES[quantity]
    given = f"serve.workerGroups.cpu.resources.requests.memory={quantity}"
    for how in ("--set", "--set-string"):
        documents = helm4.render(*INDEX, how, given)
        (service,) = (each for each in documents if each["kind"] == "RayService")
        (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"]["memory"] == QUANTITIES[quantity]


@pytest.mark.parametrize("version", KUBERAY)
@pytest.mark.parametrize("values", [*CI, "odd quantities"])
def test_the_operator_writes_what_was_rendered(
    helm4: Helm, schemas: dict[tuple[str, str], dict[str, Any]], values: str, version: str
) -> None:
    given = ("-f", CI[values]) if values in CI else (*INDEX, ODD)
    found = [each for each in helm4.render(*given) if each["kind"].startswith("Ray")]
    assert found
    for document in found:
        stored = defaulted(document, schemas[version, document["kind"]])
        ours, in_store, back = map(_worker_groups, (document, stored, rewritten(stored)))
        assert back == in_store
        for group, other in zip(ours, in_store, strict=True):
            # The priority of a group came with 1.7.0, which 1.6.2 would refuse.
            assert {**group, **({"priority": 0} if "priority" in other else {})} == other
        kept = {".scaleStrategy", ".rayStartParams", ".template.spec.volumes[].emptyDir"}
        assert {path for group in ours for path in empties(group)} <= kept


def _worker_groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document["spec"]
    cluster = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    groups: list[dict[str, Any]] = cluster.get("workerGroupSpecs", [])
    return groups
