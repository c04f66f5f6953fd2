"""The inference server: started by `deploy-runner serve`, and copied into containers as `app/`.

It imports nothing of deploy-runner, so that what a container runs is, byte for byte, what is tested here.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""onnxruntime 1.32 sends figures of its use to its maker, from 20 s on."""
