"""A name in a figure is text, whatever is in it: of a model, a layer or a class that may come from anywhere."""

from __future__ import annotations

import types

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from deploykit import plots
from deploykit.precision import number_format

FP16 = number_format(torch.float16)
GROUP = pd.DataFrame(
    {
        "layer": ["conv1", "bn1", "conv2"],
        "kind": ["Conv2d", "BatchNorm2d", "Conv2d"],
        "cut": ["output channels", "channels", "input channels"],
        "channels": [16, 16, 16],
    }
)
LAYERS = pd.DataFrame({"layer": ["conv", "fc"], "sqnr_db": [40.5, 46.1]})
FIELDS = pd.DataFrame({0.5: [40.0, 42.0], 0.9: [41.0, 45.26]}, index=[1, 4])
VARIANTS = pd.DataFrame({"accuracy": [0.92, 0.91], "latency_ms": [2.0, 0.5], "size_kib": [1000.0, 300.0]})
LOAD = types.SimpleNamespace(latency_s=np.array([0.002]), ok=np.array([True]))
EVERY = {
    "format_ranges": lambda name: plots.format_ranges({name: FP16}),
    "magnitudes": lambda name: plots.magnitudes({name: torch.ones(3)}, FP16, name="fp16"),
    "magnitudes of": lambda name: plots.magnitudes({"a": torch.ones(3)}, FP16, name=name),
    "dependency_boxes": lambda name: plots.dependency_boxes(GROUP.assign(layer=[name, "b", "c"])),
    "pruned_widths": lambda name: plots.pruned_widths({name: (16, 9)}),
    "curves": lambda name: plots.curves({name: {0.5: (1.0, (0.9, 1.1))}}, x="sparsity", y="speed"),
    "quantization_grids": lambda name: plots.quantization_grids({name: (np.arange(9.0), np.arange(9.0))}),
    "layer_bars": lambda name: plots.layer_bars(LAYERS.assign(layer=[name, "b"]), "sqnr_db", label="SQNR [dB]"),
    "calibration_curves": lambda name: plots.calibration_curves({name: {8: (0.5, (0.1, 0.9))}}),
    "heat_map": lambda name: plots.heat_map(FIELDS, x=name, y="T", of="accuracy"),
    "heat_map column": lambda name: plots.heat_map(FIELDS.rename(columns={0.9: name}), x="alpha", y="T", of="accuracy"),
    "pareto": lambda name: plots.pareto(VARIANTS.set_axis([name, "b"])),
    "load_curves": lambda name: plots.load_curves({name: {100.0: LOAD}}),
}


@pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("name", [r"$\frac{$ <img src=x onerror=alert(1)>", "a_b^c"])
def test_a_name_is_drawn_as_text(draw, name):
    """Neither HTML nor a broken formula in a name stops a figure; the alt text has it whole."""
    before = dict(mpl.rcParams)
    plot = draw(name)
    data, metadata = plot._repr_mimebundle_()

    assert data["image/png"].startswith(b"\x89PNG")
    assert name in plot.alt == metadata["image/png"]["alt"]
    assert dict(mpl.rcParams) == before
