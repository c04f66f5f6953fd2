"""The bare exporter: `python -m benchmarks.by_hand.export MODEL CHECKPOINT FILE`.

Build, load the weights, export with dynamic axes, load the file, compare it once.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from . import models


def main(name: str, checkpoint: Path, file: Path) -> None:
    """Do all of it, on one thread as a stage."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    module = getattr(models, name)().eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True))
    inputs = models.example(name)
    axes = models.EXAMPLES[name].get("dynamic", {given: {0: "batch"} for given in inputs})
    free = tuple(dict.fromkeys(axes[given], torch.export.Dim.DYNAMIC) for given in inputs)
    torch.onnx.export(module, tuple(inputs.values()), file, dynamo=True, opset_version=20, verbose=False,
                      input_names=list(inputs), dynamic_shapes=free, external_data=True)  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        outputs = module(*inputs.values())
    found = session.run(None, {given: tensor.numpy() for given, tensor in inputs.items()})
    for eager, answer in zip(outputs if isinstance(outputs, tuple) else [outputs], found, strict=True):
        assert np.allclose(eager.numpy(), answer, atol=1e-3, rtol=1e-3)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
