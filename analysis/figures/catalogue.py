"""Which figure answers which claim: all of them by id, and whatever of them a stored study allows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from analysis.curves import curves, trunk_curves
from analysis.evaluations import comparable
from analysis.figures.budgets import budget_map, recycling_efficiency
from analysis.figures.cosines import moment_and_update_cosines
from analysis.figures.curves import loss_and_accuracy_by_sunk_flops
from analysis.figures.gaps import gap_by_depth_factor, gap_by_growth_timing
from analysis.figures.growth import clone_divergence, function_preservation_waterfall
from analysis.figures.lineage import lineage_tree
from analysis.figures.mediation import mediation_panel
from analysis.figures.methods import (
    growth_orders,
    stack_and_interposition,
    stack_and_interposition_at_the_larger_size,
    top_k_variants,
)
from analysis.figures.noise import noise_scales
from analysis.figures.norms import norm_profiles, norms_over_training, seam_norms_beside_the_paper
from analysis.figures.rates import learning_rates
from analysis.figures.recovery import recovery_cost
from analysis.figures.sunk import main_effect_with_sunk_area
from analysis.figures.totals import chain_along_total_flops, fixed_total
from analysis.figures.trunk import trunk_with_growth_points
from analysis.growths import growths, twins
from analysis.lineage import lineage
from analysis.norms import layer_norms
from analysis.rates import rate_table
from analysis.recovery import recovery_costs
from analysis.table import cells_table
from analysis.updates import update_cosines
from sweeps.store import Store

Drawing = tuple[pd.DataFrame, Figure]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A figure: `draw` takes the `tables` in their order; `studies` are those of conf/study made for it."""

    id: str
    name: str
    title: str
    studies: tuple[str, ...]
    tables: tuple[str, ...]
    draw: Callable[..., Drawing]


def _entry(id: str, title: str, studies: str, tables: str, draw: Callable[..., Drawing]) -> Entry:
    return Entry(
        id=id,
        name=draw.__name__,
        title=title,
        studies=tuple(studies.split()),
        tables=tuple(tables.split()),
        draw=draw,
    )


FIGURES = {
    entry.id: entry
    for entry in (
        _entry(
            "F1", "The main effect, and what was sunk", "fixed_extra", "cells", main_effect_with_sunk_area
        ),
        _entry("F2", "Weight norms over the layers", "norms", "norms", norm_profiles),
        _entry("F3", "Stack and interposition", "timing", "curves", stack_and_interposition),
        _entry("F4", "Depth ×2, ×3, ×4", "factor4 factor4_residual", "curves cells", gap_by_depth_factor),
        _entry("F5", "Interposition less stack, by when", "timing", "cells", gap_by_growth_timing),
        _entry("F6", "Weight norms over training", "norms", "norms", norms_over_training),
        _entry("F7", "Noise on duplicated experts", "noise", "curves cells", noise_scales),
        _entry("F8", "Experts and top-k, together or apart", "topk_variants", "curves", top_k_variants),
        _entry("F9", "Depth and width in either order", "order", "curves", growth_orders),
        _entry(
            "F10", "After growth, by what was sunk", "fixed_extra", "curves", loss_and_accuracy_by_sunk_flops
        ),
        _entry("F11", "The trunk and its growth points", "timing", "trunks cells", trunk_with_growth_points),
        _entry("F12", "One total budget", "fixed_total", "curves trunks cells", fixed_total),
        _entry("F13", "The chain of growths", "chain", "curves trunks", chain_along_total_flops),
        _entry(
            "F14",
            "Stack and interposition at the larger size",
            "timing",
            "curves",
            stack_and_interposition_at_the_larger_size,
        ),
        _entry("T1", "Cosines of moments and updates", "order", "twins updates", moment_and_update_cosines),
        _entry("T2", "Weight norms at the seam", "norms", "norms", seam_norms_beside_the_paper),
        _entry("N1", "Budget map", "fixed_total ladder fixed_extra", "budget_map", budget_map),
        _entry("N2", "Sunk FLOPs or base accuracy", "fixed_extra timing", "cells", mediation_panel),
        _entry(
            "N3",
            "What growing did to the function",
            "timing noise topk_variants order",
            "growths",
            function_preservation_waterfall,
        ),
        _entry("N4", "How twins part", "noise topk_variants order", "twins", clone_divergence),
        _entry(
            "N5", "Recycling efficiency", "fixed_extra annealed_starts", "efficiency", recycling_efficiency
        ),
        _entry(
            "N6", "What a growth costs to recover from", "fixed_extra timing", "recoveries", recovery_cost
        ),
        _entry("N7", "The study's tree", "fixed_extra timing chain order", "lineage", lineage_tree),
        _entry("N8", "The rate of each arm", "growth_lr annealed_starts", "rates", learning_rates),
    )
}
_FROM_STORE: dict[str, Callable[[Store, str], pd.DataFrame]] = {
    "cells": lambda store, study: comparable(cells_table(store, study)),
    "curves": curves,
    "trunks": trunk_curves,
    "norms": layer_norms,
    "growths": growths,
    "twins": twins,
    "updates": update_cosines,
    "recoveries": recovery_costs,
    "lineage": lineage,
    "rates": lambda store, study: rate_table(comparable(cells_table(store, study))),
}


class StudyTables(Mapping[str, pd.DataFrame]):
    """The tables that figures of a stored study are drawn from, each read when it is first asked for.

    `more` makes tables beyond those of this study: `budget_map` and `efficiency`, which laws are fitted for,
    or `rates` with those of starting over. Cells and curves are of the study's main evaluation.
    """

    def __init__(
        self, store: Store, study: str, more: Mapping[str, Callable[[], pd.DataFrame]] | None = None
    ) -> None:
        self._read: dict[str, Callable[[], pd.DataFrame]] = {
            name: partial(read, store, study) for name, read in _FROM_STORE.items()
        }
        self._read |= more or {}
        self._known: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._known:
            self._known[name] = self._read[name]()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:
        return name in self._read


def draw(entry: Entry, tables: Mapping[str, pd.DataFrame]) -> Drawing:
    """The table and picture of one figure; a `ValueError` saying what is missing where it cannot be."""
    missing = [name for name in entry.tables if name not in tables]
    if missing:
        raise ValueError(f"The table {missing[0]} was not given: {entry.id} is drawn from a fitted law.")
    table, figure = entry.draw(*(tables[name] for name in entry.tables))
    if table.empty:
        raise ValueError(str(table.attrs["caption"]))
    return table, figure


def drawable(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[Entry, Drawing | str]]:
    """Every figure in the order of its id, drawn, or the sentence that says why it is left out."""
    for entry in FIGURES.values():
        try:
            yield entry, draw(entry, tables)
        except ValueError as refusal:
            yield entry, str(refusal)
