"""What an action key takes from the machine: files, packages, programs, processors and GPUs."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from deploy_runner.engine import keys
from deploy_runner.engine.keys import KeyEnvironment
from deploy_runner.types import SourceFile


def test_each_set_of_files_is_read_once() -> None:
    asked: list[str] = []

    def digest(path: str) -> str:
        asked.append(path)
        return path.upper()

    machine = KeyEnvironment(digest)
    files, others = (SourceFile("x.py", "a/x.py"), SourceFile("y.py", "y.py")), (SourceFile("z.py", "z.py"),)
    for _ in range(2):
        assert machine.digests(files) == {"x.py": "A/X.PY", "y.py": "Y.PY"}
        assert machine.digests(others) == {"z.py": "Z.PY"}
    assert asked == ["a/x.py", "y.py", "z.py"]


def test_a_package_counts_by_the_version_that_would_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("first", "a_b-1.0"), ("second", "a_b-2.0"), ("second", "other-3.0")):
        metadata = tmp_path / folder / f"{name}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: x\nVersion: {name.rpartition('-')[2]}\n")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    monkeypatch.syspath_prepend(tmp_path)  # The folder of a script, which does not count.
    machine = KeyEnvironment(str)
    names = ("A.b", "a-b", "other", "pytest", "no-such-package")
    found = {
        "A.b": "1.0",
        "a-b": "1.0",
        "other": "3.0",
        "pytest": pytest.__version__,
        "no-such-package": "absent",
    }
    for _ in range(2):
        assert {name: machine.version(name) for name in names} == found


def test_a_package_counts_by_what_is_installed_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime_gpu, which has the module onnxruntime, counts where onnxruntime is declared."""
    for name in ("own_build-2.0", "gpu_build-1.31"):
        metadata = tmp_path / "site" / f"{name}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.partition('-')[0]}\n")
        (metadata / "RECORD").write_text("some_module/__init__.py,,\n")
    (tmp_path / "site/some_module").mkdir()
    (tmp_path / "site/some_module/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path)  # The folder of a script, which does not count.
    for name in ("some-module", "Some.Module"):
        assert KeyEnvironment(str).version(name) == "gpu_build 1.31, own_build 2.0"


def test_a_program_is_a_facet_by_the_version_that_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert KeyEnvironment(lambda path: path).facet("g++") == "absent"
    (tmp_path / "g++").write_text(
        '#!/bin/sh\n[ "$*" = --version ] && echo " g++ (Debian) 99.1 "\necho more\n'
    )
    (tmp_path / "g++").chmod(0o755)
    assert KeyEnvironment(lambda path: path).facet("g++") == "g++ (Debian) 99.1"


@pytest.mark.parametrize("body", ["echo 1.0; exit 1", "printf '\\377\\n'", "exec /nowhere"])
def test_a_program_that_prints_no_version_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (tmp_path / "tool").write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / "tool").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert KeyEnvironment(str).facet("tool") == "absent"


def test_the_facets_are_those_of_this_machine() -> None:
    machine = KeyEnvironment(str)
    cpu = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    of_kernels = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve"]
    has = [flag for flag in of_kernels if re.search(rf"^(flags|Features).*\b{flag}\b", cpu, re.MULTILINE)]
    for _ in range(2):
        assert machine.facet("arch") == platform.machine()
        assert machine.facet("isa") == (",".join(has) or "baseline")


@pytest.mark.parametrize(
    ("cpu", "isa"),
    [
        (b"processor\t: 0\nmodel name\t: sve\nflags\t\t: fpu amx_int8 avx2 avx512\n", "avx2,amx_int8"),
        (b"Features\t: fp i8mm asimd\nCPU part\t: 0xd40\n", "asimd,i8mm"),
        (b"flags\t: avx2 avx512f\n\nflags\t: avx2 avx_vnni\n", "avx2,avx512f"),
        (b"model name\t: caf\xe9\nflags\t: avx2\n", "avx2"),
        (b"flags\t: fpu sse\n", "baseline"),
        (b"", "baseline"),
        (None, "baseline"),
    ],
)
def test_what_kernels_choose_by_is_told_by_the_first_processor(
    cpu: bytes | None, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_CPU", str(tmp_path / "cpuinfo"))
    if cpu is not None:
        (tmp_path / "cpuinfo").write_bytes(cpu)
    assert KeyEnvironment(str).facet("isa") == isa


def test_gpus_count_by_the_kinds_that_the_driver_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by their number or their slots: which of two equal GPUs made an output is no matter."""
    monkeypatch.setattr(keys, "_DRIVER", str(tmp_path))
    assert KeyEnvironment(str).facet("gpu") == "none"
    for slot, kind in enumerate(["NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA H200", "NVIDIA \xae"]):
        (tmp_path / f"0000:0{slot}:00.0").mkdir()
        text = f"Model: \t\t {kind}\nIRQ:   \t\t 30\nGPU Firmware: \t 570.1\n"
        (tmp_path / f"0000:0{slot}:00.0/information").write_bytes(text.encode("latin-1"))
    assert KeyEnvironment(str).facet("gpu") == "NVIDIA A100-SXM4-80GB, NVIDIA H200, NVIDIA \ufffd"
