"""The figures of the course. Every function returns a ``Plot`` that carries an alt text built from its data.

Measurements, comparisons and accuracies are those of ``measure`` and ``training``; only their numbers are read. Names
of models and classes are shown as text, never as formula or markup.
"""

from deploykit.figures import show, style
from deploykit.plots.accuracies import accuracy_differences, accuracy_latency, interval_dots
from deploykit.plots.curves import curves
from deploykit.plots.decision import decision_ladder
from deploykit.plots.heat import heat_map
from deploykit.plots.measurements import batch_curve, disturbed_calls, latency_bars, samples_over_time
from deploykit.plots.pareto import pareto
from deploykit.plots.pictures import image_grid
from deploykit.plots.precision import format_ranges, magnitudes
from deploykit.plots.profile import operator_shares, roofline, time_against_macs
from deploykit.plots.pruning import dependency_boxes, pruned_widths
from deploykit.plots.quantization import calibration_curves, layer_bars, quantization_grids
from deploykit.plots.serving import load_curves, watched

__all__ = [
    "accuracy_differences",
    "accuracy_latency",
    "batch_curve",
    "calibration_curves",
    "curves",
    "decision_ladder",
    "dependency_boxes",
    "disturbed_calls",
    "format_ranges",
    "heat_map",
    "image_grid",
    "interval_dots",
    "latency_bars",
    "layer_bars",
    "load_curves",
    "magnitudes",
    "operator_shares",
    "pareto",
    "pruned_widths",
    "quantization_grids",
    "roofline",
    "samples_over_time",
    "show",
    "style",
    "time_against_macs",
    "watched",
]
