"""Action keys: what goes in, in which canonical form, and how two of them differ.

    key = SHA-256(canonical JSON of the pre-image)

The pre-image holds everything that a stage's outputs depend on, and nothing else: resources,
timeouts and order are not in it, secrets are in it by name only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from ..types import SCHEMA_VERSION, Artifact, Json, PathSource, Source, SourceFile, StageNode
from ..usercode.installed import distributions, normal, origin_of, search_path, version_in

__all__ = [
    "Change",
    "KeyEnvironment",
    "action_key",
    "canonical",
    "differences",
    "preimage",
    "suffix_of",
]

_ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_CPU = "/proc/cpuinfo"
_DRIVER = "/proc/driver/nvidia/gpus"
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value: sorted keys, no spaces, UTF-8, no NaN."""
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")


def action_key(image: Mapping[str, Json]) -> str:
    """Return the SHA-256 (64 hex digits) of a pre-image."""
    return sha256(canonical(image)).hexdigest()


def suffix_of(node: StageNode, name: str, producers: Mapping[str, StageNode]) -> str:
    """Return the suffix that the staged file of an input keeps, e.g. `.npz`."""
    source = node.inputs[name]
    if isinstance(source, PathSource):
        path = source.path
    else:
        path = producers[source.stage].outputs[source.output].path
    base = path[path.rfind("/") + 1 :]
    if base.endswith(".tar.gz"):
        return ".tar.gz"
    dot = base.rfind(".")
    return base[dot:] if dot > 0 else ""


class KeyEnvironment:
    """What keys take from the machine: file digests, package versions, platform facets."""

    def __init__(self, digest: Callable[[str], str]) -> None:
        self._digest = digest
        self._files: dict[tuple[SourceFile, ...], dict[str, Json]] = {}
        self._installed: dict[str, str] | None = None
        self._versions: dict[str, str] = {}
        self._facets: dict[str, str] = {}

    def digests(self, files: tuple[SourceFile, ...]) -> dict[str, Json]:
        """Return name → digest of source files. Raises OSError for one that can't be read."""
        known = self._files.get(files)
        if known is None:
            known = {f.name: self._digest(f.path) for f in files}
            self._files[files] = known
        return known

    def version(self, package: str) -> str:
        """Return the installed version of a distribution, or "absent".

        What is installed in its place counts with its name: `onnxruntime_gpu 1.31.1` for onnxruntime.
        """
        if self._installed is None:
            self._installed = _installed()
        name = normal(package)
        if name not in self._versions:
            known = self._installed.get(name)
            self._versions[name] = version_in(known) if known else self._instead(name)
        return self._versions[name]

    def _instead(self, name: str) -> str:
        """Return the distributions that have the module of that name, with their versions."""
        origin = origin_of((name,))
        owners = origin.distributions if origin else ()
        return ", ".join(f"{owner} {self.version(owner)}" for owner in owners) or "absent"

    def facet(self, name: str) -> str:
        """Return a platform facet: "arch" is the machine's, "isa" what kernels choose by, "gpu" the GPUs.

        Other names are programs, by their version.
        """
        if name not in self._facets:
            known = {"arch": lambda: os.uname().machine, "isa": _isa, "gpu": _gpus}
            self._facets[name] = known.get(name, lambda: _version_of(name))()
        return self._facets[name]


def _installed() -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in reversed(search_path()):
        found |= distributions(folder)
    return found


def _isa() -> str:
    try:
        with open(_CPU, encoding="ascii", errors="replace") as file:
            flags = next((set(s.split()) for s in file if s.startswith(("flags", "Features"))), set())
    except OSError:
        flags = set()
    return ",".join(flag for flag in _ISA_FLAGS if flag in flags) or "baseline"


def _gpus() -> str:
    """Return the kinds of GPU that this machine has, by the names that NVIDIA's driver gives them."""
    import glob

    found = set()
    for place in glob.glob(f"{_DRIVER}/*/information"):
        with open(place, encoding="utf-8", errors="replace") as file:
            found |= {line.partition(":")[2].strip() for line in file if line.startswith("Model:")}
    return ", ".join(sorted(found)) or "none"


def _version_of(program: str) -> str:
    """Return the first line that a program says of its version, "absent" where there is none."""
    import subprocess

    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return "absent"
    return done.stdout.partition("\n")[0].strip()


def preimage(
    node: StageNode,
    inputs: Mapping[str, Artifact],
    suffixes: Mapping[str, str],
    environment: KeyEnvironment,
) -> dict[str, Json]:
    """Return everything that the outputs of a stage depend on.

    `inputs` are the artifacts by flat input name, `suffixes` what their staged files end in.
    """
    image: dict[str, Json] = {
        "schema": SCHEMA_VERSION,
        "uses": node.uses,
        "implementation": environment.digests(node.implementation),
        "params": dict(node.params),
        "inputs": {name: [a.digest, a.kind, suffixes[name]] for name, a in inputs.items()},
        "outputs": {name: [o.path, o.kind] for name, o in node.outputs.items()},
    }
    if node.code:
        image["code"] = environment.digests(node.code)
    if node.packages:
        image["packages"] = {name: environment.version(name) for name in node.packages}
    if node.env:
        image["env"] = dict(node.env)
    if node.facets:
        image["facets"] = {name: environment.facet(name) for name in node.facets}
    if node.target:
        image["target"] = dict(node.target)
    if node.trust:
        image["trust"] = True
    if any(a.executable for a in inputs.values()):  # Else keys are as they were before it counted.
        image["executable"] = {name: True for name, a in inputs.items() if a.executable}
    return image


class Change(NamedTuple):
    """One changed component of an action key: `component` is its dotted name."""

    component: str
    old: Json
    new: Json
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def differences(
    old: Mapping[str, Json], new: Mapping[str, Json], sources: Mapping[str, Source]
) -> list[Change]:
    """Return every component in which two pre-images of a stage with these inputs differ, in words."""
    changes: list[Change] = []
    for part in dict.fromkeys((*old, *new)):
        before, after = old.get(part), new.get(part)
        if before == after:
            continue
        if isinstance(before or after, dict) and isinstance(after or before, dict):
            for name, one, two in _differing(before or {}, after or {}, ""):
                changes.append(Change(f"{part}.{name}", one, two, _sentence(part, name, one, two, sources)))
        else:
            changes.append(Change(part, before, after, _sentence(part, "", before, after, sources)))
    return changes


def _differing(old: Any, new: Any, prefix: str) -> list[tuple[str, Json, Json]]:
    rows: list[tuple[str, Json, Json]] = []
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict) and set(before) != {"$secret"}:
            rows += _differing(before, after, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", before, after))
    return rows


def _sentence(part: str, name: str, old: Json, new: Json, sources: Mapping[str, Source]) -> str:
    change = f"{_shown(old)} → {_shown(new)}"
    if part == "params":
        return f"`with.{name}` {change}"
    if part == "executable":
        return f"the input `{name}` {'is executable now' if new else 'is not executable any more'}"
    if part == "inputs":
        return _input_sentence(name, old, new, sources)
    if part in ("code", "implementation"):
        what = "the stage's code" if part == "implementation" else "code"
        verb = "was added" if old is None else "is no longer used" if new is None else "changed"
        return f"{what} {name} {verb}"
    if part == "packages":
        return f"{name} {old or 'unknown'} → {new or 'unused'}"
    words = {"env": "the variable", "facets": "the platform's", "target": "the target's",
             "outputs": "the output"}  # fmt: skip
    if part == "uses":
        return f"the stage type {change}"
    if part == "lineage":
        return "the provenance of its inputs changed"
    if part == "schema":
        return "the key format of deploy-runner changed"
    return f"{words.get(part, part)} {name} {change}".replace("  ", " ")


def _input_sentence(name: str, old: Json, new: Json, sources: Mapping[str, Source]) -> str:
    if old is None or new is None:
        return f"the input `{name}` was {'added' if old is None else 'removed'}"
    source = sources.get(name)
    if isinstance(source, PathSource):
        return f"the input `{name}`: {source.path} changed"
    if source is not None:
        return f"the input `{name}`: the output `{source.output}` of stage {source.stage} changed"
    return f"the input `{name}` changed"


def _shown(value: Json) -> str:
    if value is None:
        return "none"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
