"""A Weights & Biases workspace for the published runs of a study: which panels, over which of their names.

Needs neither login nor network, but for `save`. The library is optional, so it is imported where it is used.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

_AXES = {"extra_flops": "extra FLOPs", "total_flops": "total FLOPs", "sunk_flops": "sunk FLOPs"}


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """The published runs of a study: how many, and every name that any of them logs."""

    study: str
    num_runs: int
    names: frozenset[str]


@dataclass(frozen=True)
class Curves:
    """Names over one that is logged at the same points, a line a run."""

    x: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Ends:
    """The last value of a name over a value of the configuration, a dot a run."""

    x: str
    name: str


def sections(names: Collection[str]) -> dict[str, list[Curves | Ends]]:
    """The panels of each section; what no run logs is in no panel, and no panel or section is empty.

    The full suite is asked of final states alone: a run has an end if a cell ends in it.
    """
    training = [("loss",), ("eval/probe/acc", "eval/probe/chance"), ("eval/probe/prob_right",)]
    wanted: dict[str, list[Curves | Ends]] = {
        "Loss and accuracy": [
            Curves(x, y) for y in [*training, ("eval/probe/loss",)] for x in ("extra_flops", "total_flops")
        ],
        "End accuracy": [
            Ends(x, f"eval/full/{score}")
            for score in ("acc", "prob_right")
            for x in ("sunk_flops", "total_flops")
        ],
        "Expert load": _by_total(
            "load_balance_loss", *_layers(names, "expert_load_max"), *_layers(names, "expert_load_entropy")
        ),
        "Norms": _by_total("grad_norm", *_layers(names, "expert_weight_norm")),
    }
    there = {title: list(_logged(panels, names)) for title, panels in wanted.items()}
    return {title: panels for title, panels in there.items() if panels}


def _by_total(*names: str) -> list[Curves | Ends]:
    return [Curves("total_flops", (name,)) for name in names]


def _layers(names: Collection[str], quantity: str) -> list[str]:
    """A panel a layer: runs differ in depth, and all layers of all runs in one panel cannot be read."""
    return sorted(name for name in names if name.startswith(f"{quantity}/layer_"))


def _logged(panels: Iterable[Curves | Ends], names: Collection[str]) -> Iterable[Curves | Ends]:
    for panel in panels:
        match panel:
            case Ends(name=name) if name in names:
                yield panel
            case Curves(x, wanted) if there := tuple(name for name in wanted if name in names):
                yield Curves(x, there)


def build(mirrored: Mirrored, project: str, entity: str = "") -> "workspaces.Workspace":
    """The workspace of a study's runs, those that carry its tag; ValueError if the library is missing.

    A run is tagged with every study that it was published for, so one that two studies share is in both.
    """
    _, workspaces = _library()
    shown = [
        workspaces.Section(name=title, panels=[_panel(panel) for panel in panels], is_open=True)
        for title, panels in sections(mirrored.names).items()
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"study {mirrored.study}",
        sections=shown,
        # Else a chart shows the first ten runs.
        settings=workspaces.WorkspaceSettings(max_runs=max(10, mirrored.num_runs)),
        runset_settings=workspaces.RunsetSettings(filters=f"Tags() in ['{mirrored.study}']"),
    )


def plain(workspace: "workspaces.Workspace") -> dict[str, Any]:
    """What `save` would send, as JSON data; only the ids of panels differ from one build to the next."""
    return workspace._to_model().model_dump(by_alias=True, exclude_none=True)  # there is no public way


def save(workspace: "workspaces.Workspace") -> str:
    """Saves a new view in W&B and gives its URL."""
    workspace.save()
    return workspace.url


def _panel(panel: Curves | Ends) -> "reports.LinePlot | reports.ScatterPlot":
    reports, _ = _library()
    axis = _AXES[panel.x]
    match panel:
        case Curves(x, names):
            return reports.LinePlot(title=f"{names[0]} over {axis}", x=x, y=list(names), title_x=axis)
        case Ends(x, name):
            x_axis, y_axis = reports.Config(x), reports.SummaryMetric(name)
            return reports.ScatterPlot(title=f"final {name} over {axis}", x=x_axis, y=y_axis)


def _library() -> Any:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(
            "a workspace needs the library wandb-workspaces, which is not installed; "
            "run: pip install 'regrow[wandb]'"
        ) from error
    return reports, workspaces
