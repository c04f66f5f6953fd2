"""Say what an artifact was made from: SLSA provenance, and a bill of materials of the model.

Both hold digests and declared values only, no time and no machine: equal runs give equal bytes.
Sources: SLSA v1.0 (slsa.dev/spec/v1.0/provenance), in-toto Statement v1, CycloneDX 1.6.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://github.com/deploy-runner/deploy-runner/blob/main/docs/provenance.md"

Lineage = Mapping[str, Mapping[str, Any]]
Digests = Mapping[str, str]
"""File name inside the package → SHA-256."""


def statement(subjects: Digests, lineage: Lineage) -> dict[str, Any]:
    """Return the in-toto statement with the SLSA provenance of the files in `subjects`."""
    stages = {
        id_: {"uses": stage["uses"], "with": stage["params"], "trust": stage.get("trust", False)}
        for id_, stage in lineage.items()
    }
    made = [
        {"name": f"{id_}.{output}", "digest": _digest_set(digest, kind)}
        for id_, stage in lineage.items()
        for output, (digest, kind, _) in stage["made"].items()
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": d}} for name, d in sorted(subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"stages": stages},
                "internalParameters": {"facets": _merged(lineage, "facets")},
                "resolvedDependencies": dependencies(lineage),
            },
            "runDetails": {
                "builder": {"id": BUILD_TYPE, "version": {"deploy-runner": version("deploy-runner")}},
                "byproducts": made,
            },
        },
    }


def dependencies(lineage: Lineage) -> list[dict[str, Any]]:
    """Return every file of the project and every package that the stages depended on."""
    files: dict[str, dict[str, str]] = {}
    for stage in lineage.values():
        for name, path in stage["sources"].items():
            digest, kind, _ = stage["inputs"][name]
            files[path] = _digest_set(digest, kind)
        files |= {path: {"sha256": digest} for path, digest in stage.get("code", {}).items()}
        files |= {f"stages/{path}": {"sha256": d} for path, d in stage["implementation"].items()}
    rows = [{"name": path, "digest": digest} for path, digest in sorted(files.items())]
    packages = sorted(_merged(lineage, "packages").items())
    return rows + [{"uri": f"pkg:pypi/{n}@{v}"} for n, v in packages if v != "absent"]


def _merged(lineage: Lineage, part: str) -> dict[str, str]:
    return {name: value for stage in lineage.values() for name, value in stage.get(part, {}).items()}


def _digest_set(digest: str, kind: str) -> dict[str, str]:
    """Return a DigestSet; a folder's digest is that of its manifest, which is no plain SHA-256."""
    return {"sha256": digest} if kind == "file" else {"deployRunnerFolder": digest}


def bill_of_materials(
    name: str, subjects: Digests, lineage: Lineage, reports: Mapping[str, Path], license_id: str
) -> str:
    """Return a CycloneDX 1.6 ML-BOM as JSON, strictly validated.

    The library has no model card, which the format wants for a model: it is added to its JSON.
    """
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL

    identity = json.dumps(sorted(subjects.items()))
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, identity))
    license_ = [DisjunctiveLicense(id=license_id)] if license_id else None
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=name, bom_ref="model", licenses=license_
    )
    bom.metadata.component = model
    for file, digest in sorted(subjects.items()):
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
        kind = ComponentType.FILE
        bom.components.add(Component(type=kind, name=file, bom_ref=f"file:{file}", hashes=hashes))
    for package, found in sorted(_merged(lineage, "packages").items()):
        if found != "absent":
            purl = PackageURL("pypi", None, package.lower(), found)
            bom.components.add(Component(name=package, version=found, purl=purl, bom_ref=f"pypi:{package}"))
    value = json.loads(JsonV1Dot6(bom).output_as_string())
    value["metadata"].pop("timestamp", None)
    value["metadata"]["component"]["modelCard"] = _model_card(reports)
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if errors:
        raise StageError(f"the bill of materials would not be valid: {str(errors)[:300]}")
    return text


def _model_card(reports: Mapping[str, Path]) -> dict[str, Any]:
    """Return the model card: the figures of the reports as performance metrics."""
    metrics = []
    for name, path in sorted(reports.items()):
        try:
            report = json.loads(path.read_text("utf-8"))
            figures = {k: v for k, v in report.items() if isinstance(v, (int, float))}
        except (ValueError, AttributeError):
            raise StageError(f"the report {name!r} is not a JSON object of figures") from None
        metrics += [{"type": k, "value": repr(v), "slice": name} for k, v in sorted(figures.items())]
    return {"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}
