"""What keeps libraries from reporting their use to their makers, unless the environment says otherwise.

The package reads it before anything else, so this imports nothing that a file of the user's could hide.
"""

from __future__ import annotations

__all__ = ["SILENCE", "SILENCED"]

SILENCE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NNCF_CI": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

SILENCED = ("openvino_telemetry",)
"""Modules that report and know no variable that ends it. Without them openvino and nncf report nothing."""
