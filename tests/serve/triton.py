"""The Triton Inference Server of NVIDIA's wheel `nvidia-pytriton`, on a model repository.

The wheel has the server itself but no backend for ONNX: that one is triton_backend.py. So what is proven is
all that Triton does with a repository and with requests, not NVIDIA's own call of onnxruntime.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.ports import answers, free, started

__all__ = ["Triton", "install", "serving"]

_SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
"""Its Python stub reads numpy 2's arrays as empty."""
_CLIENT_WHEELS = ("tritonclient==2.73.0", "python-rapidjson==1.25")
_CLIENT = """
import json, sys
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

url, model, given, found, classes = sys.argv[1:]
client = InferenceServerClient(url)
if given == "config":
    print(json.dumps(client.get_model_config(model, as_json=True)["config"]))
    sys.exit()
inputs = []
for name, array in np.load(given, allow_pickle=True).items():
    inputs.append(InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
    inputs[-1].set_data_from_numpy(array)
outputs = None
if classes != "0":
    rows = client.get_model_config(model, as_json=True)["config"]["output"]
    outputs = [InferRequestedOutput(row["name"], int(classes)) for row in rows]
try:
    answer = client.infer(model, inputs, outputs=outputs)
except InferenceServerException as error:
    sys.exit(str(error))
np.savez(found, **{row.name: answer.as_numpy(row.name) for row in answer.get_response().outputs})
"""


class Triton:
    """A running server, asked by NVIDIA's own client."""

    def __init__(self, place: str, client: Path, folder: Path) -> None:
        self._place, self._packages, self._folder = place, client, folder

    def config(self, model: str) -> dict[str, Any]:
        """Return a model's configuration as the server has it."""
        done = self._client(model, "config")
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def infer(self, model: str, arrays: Mapping[str, Any], *, classes: int = 0) -> dict[str, Any]:
        """Return the answers by output; with `classes` the so many best, as `score:place:label`."""
        np.savez(self._folder / "given.npz", **arrays)
        done = self._client(model, str(self._folder / "given.npz"), classes)
        assert done.returncode == 0, done.stderr
        with np.load(self._folder / "found.npz", allow_pickle=True) as found:
            return dict(found)

    def refusal(self, model: str, arrays: Mapping[str, Any]) -> str:
        """Return what the server says of a request that it refuses."""
        np.savez(self._folder / "given.npz", **arrays)
        done = self._client(model, str(self._folder / "given.npz"))
        assert done.returncode == 1, done.stdout
        return done.stderr.strip()

    def _client(self, model: str, given: str, classes: int = 0) -> subprocess.CompletedProcess[str]:
        found = self._folder / "found.npz"
        return subprocess.run(
            [sys.executable, "-c", _CLIENT, self._place, model, given, str(found), str(classes)],
            env={**os.environ, "PYTHONPATH": str(self._packages)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip


def install(folder: Path) -> Path:
    """Put the server and its client into a folder: pip, without what the wheels want for themselves."""
    for name, wheels in (("server", _SERVER), ("client", _CLIENT_WHEELS)):
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / name)]
        subprocess.run([*command, *wheels], check=True, capture_output=True)
    return folder


@contextmanager
def serving(repository: Path, wheels: Path, folder: Path) -> Iterator[Triton]:
    """Run the server on a model repository, strictly by its configurations, until the block ends."""
    wheels, client = wheels / "server", wheels / "client"
    home, backends = wheels / "pytriton/tritonserver", folder / "backends"
    shutil.copytree(home / "backends/python", backends / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = shutil.copy(
        home / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python"
    )
    Path(stub).chmod(0o755)
    (backends / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("triton_backend.py"), backends / "onnxruntime/model.py")
    http, grpc, metrics = free(3)
    command = [
        home / "bin/tritonserver", "--model-repository", repository, "--backend-directory", backends,
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--http-port={http}", f"--grpc-port={grpc}",
        f"--metrics-port={metrics}", "--disable-auto-complete-config", "--exit-on-error=true",
    ]  # fmt: skip
    (home / "bin/tritonserver").chmod(0o755)
    libraries = f"{wheels / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    env = {"LD_LIBRARY_PATH": libraries, "TEST_PACKAGES": ":".join([str(wheels), *filter(None, sys.path)])}

    def ready() -> bool:
        return answers(f"http://127.0.0.1:{http}/v2/health/ready")

    with started(command, folder / "triton.log", ready=ready, env=env):
        yield Triton(f"127.0.0.1:{grpc}", client, folder)
