"""The figures of a study: each a function from a table to (exactly what is drawn, the picture)."""

from analysis.figures.curves import loss_and_accuracy_by_sunk_flops
from analysis.figures.families import accuracy_by_family
from analysis.figures.growth import clone_divergence, function_preservation_waterfall
from analysis.figures.learning import learning_curves_by_family
from analysis.figures.style import save, themed
from analysis.figures.sunk import accuracy_against_sunk_flops
from analysis.figures.trunk import trunk_with_growth_points

__all__ = [
    "accuracy_against_sunk_flops",
    "accuracy_by_family",
    "clone_divergence",
    "function_preservation_waterfall",
    "learning_curves_by_family",
    "loss_and_accuracy_by_sunk_flops",
    "save",
    "themed",
    "trunk_with_growth_points",
]
