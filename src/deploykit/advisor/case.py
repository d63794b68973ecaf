"""A network and its demands put together, with what follows from both before any step is chosen."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from deploykit.advisor.effects import FEW_IMAGES
from deploykit.advisor.numbers import choose_numbers
from deploykit.advisor.situation import RUNTIMES, Constraints, NetworkProfile, target_here

# A short fine-tuning on two cores; the recorded run of fifteen epochs took 41 minutes.
LEAST_TRAINING_MINUTES = 10
# From random weights: the recorded run lost 0.93 points. Of its 150 epochs 60 took 45 minutes of a core, and a teacher
# has to be asked, too.
LEAST_MINUTES_TO_DRAW = 120
LEAST_BUDGET_TO_DRAW = 1.0
# Less than this is not to be had: the recorded removal of three blocks lost 0.46 points.
LEAST_BUDGET_TO_SHRINK = 0.5
RUNTIME_NAMES = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "torch": "Inductor package",
    "tensorrt": "TensorRT",
}
STATIC_FORMS = {
    ("openvino", "x86-vnni"): "int8 NNCF",
    ("openvino", "x86"): "int8 NNCF",
    ("onnxruntime", "x86-vnni"): "int8 u8s8",
    ("onnxruntime", "x86"): "int8 u8s8 with 7-bit weights",
    ("onnxruntime", "arm"): "int8 for arm",
    ("torch", "x86-vnni"): "int8 inductor",
    ("torch", "x86"): "int8 inductor",
}


@dataclass(frozen=True)
class Case:
    """What the rules ask."""

    profile: NetworkProfile
    wanted: Constraints

    @property
    def met(self) -> bool:
        """Whether something is demanded, and all of it is there already."""
        pairs = [
            (self.wanted.latency_ms, self.profile.latency_ms),
            (self.wanted.size_kib, self.profile.size_kib),
        ]
        demands = [(most, found) for most, found in pairs if most is not None]
        return bool(demands) and all(found is not None and found <= most for most, found in demands)

    @property
    def can_train(self) -> bool:
        """Whether there are images and time for a fine-tuning, and accuracy that may change."""
        return self.wanted.training_minutes >= LEAST_TRAINING_MINUTES and self.wanted.budget_points > 0

    @property
    def shrinks(self) -> bool:
        """Whether the network is made smaller."""
        return self.can_train and self.wanted.budget_points >= LEAST_BUDGET_TO_SHRINK and not self.met

    @property
    def draws(self) -> bool:
        """Whether the smaller network is another one, trained from random weights, and not the rest of this one."""
        wanted = self.wanted
        allowed = wanted.training_minutes >= LEAST_MINUTES_TO_DRAW and wanted.budget_points >= LEAST_BUDGET_TO_DRAW
        return self.shrinks and self.profile.kind == "cnn" and allowed

    @property
    def can_batch(self) -> bool:
        """Whether overhead binds, calls have few images, and nothing says that an answer must not wait for others."""
        few = self.profile.bottleneck == "overhead" and self.profile.batch <= FEW_IMAGES
        return few and self.wanted.latency_ms is None and not self.met

    @property
    def numbers(self) -> str:
        """What it computes with in the end; see ``choose_numbers``."""
        if self.met:
            return "float32"
        wanted = self.wanted
        return choose_numbers(
            self.profile.kind,
            wanted.target,
            data=wanted.data,
            budget_points=wanted.budget_points,
            runtime=wanted.runtime,
            bf16=wanted.bf16,
            int8_loss_points=self.profile.int8_loss_points,
            can_train=self.can_train,
        )

    @property
    def runtime(self) -> str:
        """Where it runs in the end."""
        if self.numbers == "dynamic int8":
            return "torch"
        if self.wanted.runtime or self.numbers == "bf16":
            return self.wanted.runtime or "openvino"
        available = RUNTIMES[self.wanted.target]
        # Tried with the row-LSTM in float32: quicker than in OpenVINO for single images, alike in batches.
        if self.profile.kind == "recurrent" and "onnxruntime" in available:
            return "onnxruntime"
        return available[0]

    @property
    def form(self) -> str:
        """What is deployed, in the words of the recorded runs."""
        if self.met:
            return "PyTorch, as it is"
        if self.numbers == "dynamic int8":
            return "PyTorch, int8 dynamic"
        shape = self.numbers
        if self.numbers == "trained int8" or self.portable:
            shape = "int8 portable"
        elif self.numbers == "static int8":
            shape = STATIC_FORMS[self.runtime, self.wanted.target]
        return f"{RUNTIME_NAMES[self.runtime]}, {shape}"

    @property
    def portable(self) -> bool:
        """Whether a small file is asked for: int8 in one ONNX file is smaller than OpenVINO's pair of files."""
        return self.numbers == "static int8" and self.runtime == "openvino" and self.wanted.size_kib is not None

    @functools.cached_property
    def is_here(self) -> bool:
        """Whether this machine is the target, so that its ledger counts."""
        return self.wanted.target == target_here()

    @property
    def recorded(self) -> bool:
        """Whether the project's recorded runs are about such a case."""
        return self.profile.kind == "cnn" and self.wanted.target == "x86-vnni"
