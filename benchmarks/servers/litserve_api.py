"""The model behind LitServe's batching, on ONNX Runtime."""

import os
import sys

import litserve
import numpy as np
import onnxruntime


class Digits(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def decode_request(self, request: dict) -> np.ndarray:
        return np.asarray(request["inputs"], np.float32)

    def batch(self, inputs: list) -> np.ndarray:
        return np.concatenate(inputs)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input: images})[0]

    def unbatch(self, logits: np.ndarray) -> list:
        return list(logits)

    def encode_response(self, logits: np.ndarray) -> dict:
        return {"outputs": [logits.tolist()]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Digits(max_batch_size=64, batch_timeout=0.002), accelerator="cpu", fast_queue=True
    )
    server.run(
        "127.0.0.1", int(sys.argv[1]), num_api_servers=2, log_level="warning", generate_client_file=False
    )
