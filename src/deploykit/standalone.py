"""The script that runs an artifact where deploykit is not installed: from a picture's file to its class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.artifacts import HINTS

if TYPE_CHECKING:
    from deploykit.data import Dataset

# With {load} and {run} of a runtime.
SCRIPT = '''"""Classify pictures: python run.py picture.png. Needs numpy, pillow and {package}."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
{load}
CLASSES, SIDE = {classes!r}, {side}
MEAN, STD = np.float32({mean!r}), np.float32({std!r})
for name in sys.argv[1:]:
    picture = ImageOps.fit(Image.open(name).convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR)
    images = ((np.asarray(picture, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None].copy()
    print(name, CLASSES[{run}.argmax()])
'''
ONNX_RUNTIME = {
    "package": "onnxruntime",
    "load": """
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else ONNX Runtime reports its use to a web service
import onnxruntime

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])""",
    "run": "session.run(None, {session.get_inputs()[0].name: images})[0]",
}
OPENVINO = {
    "package": "openvino",
    "load": """
sys.modules["openvino_telemetry"] = None  # else OpenVINO reports its use to a web service
import openvino

hints = {{"INFERENCE_PRECISION_HINT": "{hint}"}}
model = openvino.Core().compile_model(Path(__file__).with_name("model.xml"), "CPU", hints)""",
    "run": "model([images])[0]",
}


def script_for(runtime: str, precision: str, dataset: Dataset, side: int) -> str:
    """Return a Python script that lies beside an artifact, ``model.onnx`` or ``model.xml``, and runs it.

    Args:
        runtime: "ONNX Runtime" or "OpenVINO".
        precision: as the artifact was made for.
        dataset: whose classes it tells apart, and whose images it was trained on.
        side: of an image, in pixels.
    """
    parts = ONNX_RUNTIME if runtime == "ONNX Runtime" else OPENVINO
    load = parts["load"] if parts is ONNX_RUNTIME else parts["load"].format(hint=HINTS.get(precision, "f32"))
    facts = {"classes": dataset.classes, "side": side, "mean": list(dataset.mean), "std": list(dataset.std)}
    return SCRIPT.format(**{**parts, "load": load}, **facts)
