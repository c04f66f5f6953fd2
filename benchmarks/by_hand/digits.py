"""The example as one script: `python -m benchmarks.by_hand.digits FOLDER`.

The calls of libraries that the stages of pipeline.yaml make, in their order, with the same settings, models,
samples and local servers; without a store, keys, sandboxes, locks, records and reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import matplotlib
import numpy as np
import onnx
import onnxruntime
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from isal import igzip
from matplotlib.figure import Figure
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file, save_file
from sagemaker.core.resources import Endpoint, Model
from sagemaker.core.shapes import ContainerDefinition, Tag

from examples.digits.model import build

EXAMPLE = Path("examples/digits")
ATOL = 1e-5
Run = Callable[[Any], Any]
INFERENCE = """
import json
import numpy
import onnxruntime

def model_fn(folder):
    return onnxruntime.InferenceSession(f"{folder}/model.onnx")

def transform_fn(session, body, content_type, accept):
    images = numpy.array(json.loads(body)["inputs"]["image"], numpy.float32)
    return json.dumps({"outputs": {"logits": session.run(None, {"image": images})[0].tolist()}}), accept
"""


def main(folder: Path) -> None:
    """Do all of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # As a stage has by default.
    weights = folder / "weights.safetensors"
    known: list[Any] = [type(np.float64()).__reduce__(np.float64())[0], np.dtype, np.dtypes.Float64DType]
    with torch.serialization.safe_globals(known):
        content = torch.load(EXAMPLE / "digits.pt", weights_only=True)
    save_file(content["model_state_dict"], weights)
    cases = prepare(weights, folder)
    traced(weights, cases, folder / "model.pt")
    fp32 = exported(weights, cases, folder / "fp32.onnx")
    check(fp32, folder)
    models = {"fp32": fp32}
    for method in ("MinMax", "Entropy", "Percentile"):
        models[method] = quantized(fp32, method, folder / f"{method}.onnx", cases)
    for name, model in models.items():
        parity(run_of(model), cases, 0.5 if name != "fp32" else ATOL)
    with np.load(EXAMPLE / "heldout.npz") as data:
        images, labels = data["x"], data["y"]
    eager = eager_of(weights)
    drops = {}
    for name, model in models.items():
        before, after = (accuracy(run, images, labels) for run in (eager, run_of(model)))
        drops[name] = 100 * (before - after)
    times = measure({name: run_of(model) for name, model in models.items()}, cases[0][0])
    best = min((name for name in models if drops[name] <= 0.5), key=lambda name: times[name])
    plot(folder / "pareto.svg", times, drops)
    package = pack(models[best], cases, folder)
    with servers(folder):
        push_endpoint(package, run_of(models[best]), cases)
        push_hub({"model.safetensors": weights, "onnx/model.onnx": fp32,
                  "onnx/model_best.onnx": models[best]})  # fmt: skip


def eager_of(weights: Path) -> Run:
    """Return the model with its weights."""
    module = build().eval().requires_grad_(False)
    module.load_state_dict(load_file(weights))

    def run(images: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    run.module = module  # type: ignore[attr-defined]
    return run


def run_of(model: Path) -> Run:
    """Open an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def prepare(weights: Path, folder: Path) -> list[tuple[Any, Any]]:
    """Run the model at two sizes of its batch, and once more; return inputs and outputs."""
    eager, double = eager_of(weights), build().double().eval()
    double.load_state_dict(load_file(weights))
    with np.load(EXAMPLE / "heldout.npz") as data:
        images = data["x"]
    cases = []
    for count in (8, 5):
        outputs = eager(images[:count])
        assert np.isfinite(outputs).all()
        assert outputs.shape == (count, 10)
        with torch.no_grad():
            double(torch.from_numpy(images[:count]).double())
        cases.append((images[:count], outputs))
    assert np.array_equal(eager(images[:8]), cases[0][1])
    assert np.allclose(eager(images[:1]), cases[0][1][:1], atol=1e-4)
    np.savez(folder / "reference.npz", x=cases[0][0], y=cases[0][1])
    return cases


def parity(run: Run, cases: list[tuple[Any, Any]], share: float) -> None:
    """Compare with the reference: the difference as a share of the largest value."""
    for images, outputs in cases:
        found = run(images)
        assert np.abs(found - outputs).max() <= share * np.abs(outputs).max()
        assert (found.argmax(1) == outputs.argmax(1)).mean() >= 0.9


def traced(weights: Path, cases: list[tuple[Any, Any]], path: Path) -> None:
    """Trace, save, load back, compare."""
    module = eager_of(weights).module  # type: ignore[attr-defined]
    example, other = (torch.from_numpy(images) for images, _ in cases)
    torch.jit.save(torch.jit.trace(module, example, check_inputs=[other], strict=False), path)
    program = torch.jit.load(path)
    parity(lambda images: program(torch.from_numpy(images)).detach().numpy(), cases, ATOL)


def exported(weights: Path, cases: list[tuple[Any, Any]], path: Path) -> Path:
    """Export, load back, compare."""
    module = eager_of(weights).module  # type: ignore[attr-defined]
    torch.onnx.export(module, (torch.from_numpy(cases[0][0]),), path, dynamo=True, opset_version=20,
                      input_names=["image"], output_names=["logits"], verbose=False, external_data=False,
                      dynamic_shapes={"image": {0: torch.export.Dim.DYNAMIC}})  # fmt: skip
    parity(run_of(path), cases, ATOL)
    return path


def check(model: Path, folder: Path) -> None:
    """Check the file, infer its shapes, load it."""
    onnx.checker.check_model(str(model), full_check=True)
    onnx.shape_inference.infer_shapes_path(str(model), str(folder / "inferred.onnx"), strict_mode=True)
    run_of(model)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out one sample at a time."""

    def __init__(self) -> None:
        with np.load(EXAMPLE / "calibration.npz") as data:
            self._samples = iter([{"image": image[None]} for image in data["x"]])

    def get_next(self) -> Any:
        """Return the next sample."""
        return next(self._samples, None)


def quantized(model: Path, method: str, path: Path, cases: list[tuple[Any, Any]]) -> Path:
    """Calibrate, quantize, load back, compare; entropy with few bins, as the usual many take 7 s."""
    ready = path.with_suffix(".ready.onnx")
    quant_pre_process(model, ready, skip_symbolic_shape=True)
    quantize_static(ready, path, Reader(), calibrate_method=CalibrationMethod[method], per_channel=True,
                    reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    extra_options={"WeightSymmetric": True, "NumBins": 128})  # fmt: skip
    parity(run_of(path), cases, 0.5)
    return path


def accuracy(run: Run, images: Any, labels: Any) -> float:
    """Return the share of right answers."""
    found = [run(images[at : at + 64]).argmax(1) for at in range(0, len(images), 64)]
    return float((np.concatenate(found) == labels).mean())


def measure(models: Mapping[str, Run], images: Any) -> dict[str, float]:
    """Return the median seconds of each, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(210):
        for name, run in models.items():
            started = time.perf_counter()
            run(images)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def plot(path: Path, times: Mapping[str, float], drops: Mapping[str, float]) -> None:
    """Draw the choice."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in times:
        axes.scatter(times[name], drops[name])
        axes.annotate(name, (times[name], drops[name]), xytext=(6, 5), textcoords="offset points")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, format="svg")


def pack(model: Path, cases: list[tuple[Any, Any]], folder: Path) -> Path:
    """Pack, unpack, run what was packed."""
    package, container = folder / "model.tar.gz", folder / "container"
    (folder / "inference.py").write_text(INFERENCE)
    with igzip.open(package, "wb", compresslevel=2) as file, tarfile.open(fileobj=file, mode="w") as archive:
        archive.add(model, "model.onnx")
        archive.add(folder / "inference.py", "code/inference.py")
    with igzip.open(package) as file, tarfile.open(fileobj=file) as archive:
        archive.extractall(container, filter="data")
    parity(run_of(container / "model.onnx"), cases, 0.5)
    return package


@contextmanager
def servers(folder: Path) -> Iterator[None]:
    """Start the local AWS and Hub that a dry run uses."""
    commands = {"AWS_ENDPOINT_URL": ["deploy_runner.local.aws"],
                "HF_ENDPOINT": ["deploy_runner.local.hub", "--root", str(folder / "hub")]}  # fmt: skip
    started = {name: subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
               for name, command in commands.items()}  # fmt: skip
    try:
        for name, process in started.items():
            assert process.stdout is not None
            os.environ[name] = json.loads(process.stdout.readline())["url"]
        yield
    finally:
        for process in started.values():
            process.communicate()


def push_endpoint(package: Path, run: Run, cases: list[tuple[Any, Any]]) -> None:
    """Upload, make model, config and endpoint, ask it."""
    session = boto3.Session("dry-run", "dry-run", region_name="us-east-1")
    s3, client = session.client("s3"), session.client("sagemaker")
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    s3.create_bucket(Bucket="models")
    s3.put_object(Bucket="models", Key=f"{digest}/model.tar.gz", Body=package.read_bytes(),
                  ChecksumAlgorithm="SHA256", IfNoneMatch="*")  # fmt: skip
    s3.head_object(Bucket="models", Key=f"{digest}/model.tar.gz", ChecksumMode="ENABLED")
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/inference:latest"
    role, where = "arn:aws:iam::123456789012:role/sagemaker", {"session": session, "region": "us-east-1"}
    Model.create(model_name="digits", execution_role_arn=role, tags=[Tag(key="digest", value=digest)],
                 primary_container=ContainerDefinition(
                     image=image, model_data_url=f"s3://models/{digest}/model.tar.gz"), **where)  # fmt: skip
    client.describe_model(ModelName="digits")
    variant = {"VariantName": "all", "ModelName": "digits", "InstanceType": "ml.m5.large",
               "InitialInstanceCount": 1}  # fmt: skip
    client.create_endpoint_config(EndpointConfigName="digits", ProductionVariants=[variant])
    client.describe_endpoint_config(EndpointConfigName="digits")
    client.create_endpoint(EndpointName="digits", EndpointConfigName="digits")
    while (status := Endpoint.get(endpoint_name="digits", **where).endpoint_status) != "InService":
        assert status != "Failed"
        time.sleep(0.2)
    runtime = session.client("sagemaker-runtime")
    for images, _ in cases:
        body = json.dumps({"inputs": {"image": images[:8].tolist()}})
        answer = runtime.invoke_endpoint(EndpointName="digits", Body=body, ContentType="application/json")
        found = np.array(json.loads(answer["Body"].read())["outputs"]["logits"])
        assert np.allclose(found, run(images[:8]), atol=1e-3)


def push_hub(files: Mapping[str, Path]) -> None:
    """Create a repository, commit the files, read them back."""
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token="hf_dry_run")
    api.create_repo("local/digits")
    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations.append(CommitOperationAdd("README.md", b"---\nlicense: apache-2.0\n---\n# digits\n"))
    made = api.create_commit("local/digits", operations, commit_message="Publish")
    assert len(api.get_paths_info("local/digits", [*files, "README.md"], revision=made.oid)) == len(files) + 1


if __name__ == "__main__":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    Path(sys.argv[1]).mkdir()
    main(Path(sys.argv[1]))
