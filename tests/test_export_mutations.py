"""A damaged ONNX file: 300 of them through verify_onnx and both runtimes, in a child process that may die."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_residual import SmallResidual, images

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

from deploykit.export import export_onnx

MUTATIONS = 300
# Reads the number of the first mutation; prints a line before and after each, so that its parent knows where it died.
CHILD = """
import json, random, resource, sys
import torch
from deploykit.export import verify_onnx
from deploykit.runtimes import onnxruntime, openvino
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # a damaged shape may ask for more than there is
first, last, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
good = open(f"{folder}/good.onnx", "rb").read()
model, images = torch.load(f"{folder}/model.pt", weights_only=False)
wanted = model(images).detach()

def mutate(seed):
    draw = random.Random(seed)
    content = bytearray(good)
    kind = draw.choice(["bytes", "bit", "cut", "hole", "twice"])
    at = draw.randrange(len(content))
    if kind == "bytes":
        for _ in range(draw.randrange(1, 9)):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif kind == "bit":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "hole":
        del content[at : at + draw.randrange(1, 40)]
    else:
        content[at:at] = content[at : at + draw.randrange(1, 40)]
    return bytes(content)

def outcome(act):
    try:
        logits = act()
    except (ValueError, FileNotFoundError):
        return "refused"
    if logits is None:
        return "right"
    same = logits.shape == wanted.shape and bool(torch.isclose(logits, wanted, rtol=1e-3, atol=1e-3).all())
    return "right" if same else "other"

for number in range(first, last):
    path = f"{folder}/mutated.onnx"
    open(path, "wb").write(mutate(number))
    for name, act in {
        "verify": lambda: verify_onnx(model, path, [images]) and None,
        "ONNX Runtime": lambda: onnxruntime.load(path)(images),
        "OpenVINO": lambda: openvino.load(path)(images),
    }.items():
        print(json.dumps([number, name, "began"]), flush=True)
        print(json.dumps([number, name, outcome(act)]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict[int, str]]:
    """Return what became of each mutation by name of what it was given to; "died" where the child did."""
    folder = tmp_path_factory.mktemp("mutations")
    torch.manual_seed(0)
    model = SmallResidual().eval()
    (folder / "good.onnx").write_bytes(export_onnx(model, images(2)).SerializeToString())
    torch.save((model, images(4)), folder / "model.pt")
    found: dict[str, dict[int, str]] = collections.defaultdict(dict)
    first = 0
    while first < MUTATIONS:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(first), str(MUTATIONS), str(folder)],
            capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        assert lines, done.stderr[-2000:]
        for number, name, what in lines:
            found[name][number] = "died" if what == "began" else what
        assert done.returncode == 0 or lines[-1][2] == "began", done.stderr[-2000:]
        first = lines[-1][0] + 1
    return found


class TestDamagedFiles:
    def test_every_one_is_refused_or_gives_the_models_answer(self, outcomes):
        """verify_onnx lets nothing else through, and it never takes its process down with it."""
        counted = collections.Counter(outcomes["verify"].values())

        assert set(counted) <= {"refused", "right"}
        assert sum(counted.values()) == MUTATIONS
        assert min(counted.values()) > 10

    @pytest.mark.parametrize("runtime", ["ONNX Runtime", "OpenVINO"])
    def test_what_was_verified_runs(self, outcomes, runtime):
        """A file that passed gives the model's answers in both runtimes."""
        passed = [number for number, what in outcomes["verify"].items() if what == "right"]

        assert {outcomes[runtime][number] for number in passed} == {"right"}
