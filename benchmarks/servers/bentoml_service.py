"""The model behind BentoML's adaptive batching, on ONNX Runtime."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=2, logging={"access": {"enabled": False}})
class Digits:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    @bentoml.api(route="/predict", batchable=True, max_batch_size=32, max_latency_ms=1000)
    async def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input: inputs.astype(np.float32)})[0]
