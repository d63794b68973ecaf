"""The smallest network that has all that a residual network asks of quantization: for tests of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn


class SmallResidual(nn.Module):
    """A stem, one residual block without a projection, a pool and a classifier; images [N, 3, 8, 8], four classes.

    Its batch norms have statistics and constants as after training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, 4)
        for norm in (self.stem_bn, self.bn1, self.bn2):
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 [N, 3, 8, 8] to logits [N, 4]."""
        features = self.stem_bn(self.stem(images)).relu()
        hidden = self.bn1(self.conv1(features)).relu()
        features = self.pool((self.bn2(self.conv2(hidden)) + features).relu())
        return self.fc(features.mean(dim=(2, 3)))


class Branching(nn.Module):
    """A network with a part that no graph can hold: a branch that depends on the values of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.gate = Gate()

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 [N, 3, H, W] to float32 [N, 4]."""
        return self.gate(self.first(images)).mean(dim=(2, 3))


class Gate(nn.Module):
    """The part in question."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the features or their negative."""
        return features if features.sum() > 0 else -features


def images(number: int, *, seed: int = 0) -> Tensor:
    """Draw images, float32 [number, 3, 8, 8]."""
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copy all that a model holds."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def kernels(proto: onnx.ModelProto, inputs: Tensor, folder: Path) -> tuple[list[str], Tensor]:
    """Run a model in ONNX Runtime and return the operators that its profile lists, and the logits."""
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return [e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time")], torch.from_numpy(logits)
