"""deploykit: a hands-on cookbook on deploying neural networks efficiently that measures what it teaches."""

import os
import sys

__version__ = "0.1.0"

# OpenVINO and NNCF report usage to a web service when imported, without asking. With the reporting package marked
# as absent both fall back to a stub of their own. DEPLOYKIT_TELEMETRY=1 leaves them alone.
if os.environ.get("DEPLOYKIT_TELEMETRY") != "1":
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime looks once, when it is loaded
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray asks only at a terminal
