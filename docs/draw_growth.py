"""Draws the pictures of docs/growth.md with the code that grows: `python docs/draw_growth.py`.

Every bar is read off the operator (`layer_sources`), off grown weights, or off the cells that a
configuration resolves to; nothing is drawn by hand.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from omegaconf import OmegaConf
from torch import Tensor

from moe.config import ModelConfig
from moe.growth import grow_weights
from moe.model import MoETransformer
from moe.operator import Copies, DepthMethod, Operator, WidthMethod
from moe.router import route
from sweeps.cell import resolve
from sweeps.config import parse_sweep
from sweeps.trajectory import Address, Kind

ROOT = Path(__file__).resolve().parent.parent
LAYERS, EXPERTS = 4, 4
INK, NEW = "#1f2328", "#b4b8be"
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")
VIRIDIS = matplotlib.colormaps["viridis"]
IN, OUT = "layers.{}.moe.experts.w_in_EGD", "layers.{}.moe.experts.w_out_EDH"


@dataclass(frozen=True)
class Bar:
    """A layer or an expert of a grown model.

    `source` is what it was copied from, None if it was drawn anew, as the share `fresh` of it may be.
    `height` is how much it adds to the stream, or its size, beside its source. `gate` is its weight for the
    token that is shown; 0 where that token does not go.
    """

    source: int | None
    height: float = 1.0
    noisy: bool = False
    fresh: float = 0.0
    gate: float = 0.0


Rows = dict[str, list[Bar]]


def _model(num_layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=16,
        num_layers=num_layers,
        hidden_size=32,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        num_experts=EXPERTS,
        top_k=2,
        expert_hidden_size=16,
        rope_theta=1e4,
        norm_eps=1e-6,
    )


def _grown(model: ModelConfig, operator: Operator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    source = MoETransformer(model).initialise(seed=0).state_dict()
    return source, grow_weights(model, operator, source)


# --------------------------------------------------------------------------------------------------------
# What is drawn


def depth_rows() -> Rows:
    """The source of every layer, first to last."""
    twice = {"depth_factor": 2}
    operators = {
        "source": Operator(),
        "stack": Operator(method=DepthMethod.STACK, **twice),
        "interposition": Operator(method=DepthMethod.INTERPOSITION, **twice),
        "interposition, keep_first=1, keep_last=1": Operator(
            method=DepthMethod.INTERPOSITION, keep_first=1, keep_last=1, **twice
        ),
        "layer_map: middle stacking, seam dropped": Operator(
            method=DepthMethod.LAYER_MAP, layer_map=(0, 1, 2, 1, 2, 3)
        ),
        "layer_map: gradual stacking": Operator(method=DepthMethod.LAYER_MAP, layer_map=(0, 1, 2, 3, 2, 3)),
    }
    return {name: [Bar(source) for source in o.layer_sources(LAYERS)] for name, o in operators.items()}


def copies_rows() -> Rows:
    """What each layer adds: the norm of its experts' output matrices beside its source's."""
    inside, random = DepthMethod.INTERPOSITION, DepthMethod.RANDOM
    operators = {
        "exact": Operator(method=inside, depth_factor=2),
        "zeroed": Operator(method=inside, depth_factor=2, copies=Copies.ZEROED),
        "scaled": Operator(method=inside, depth_factor=2, copies=Copies.SCALED),
        "method random, exact": Operator(method=random, depth_factor=2, seed=1),
        "method random, zeroed": Operator(method=random, depth_factor=2, seed=1, copies=Copies.ZEROED),
    }
    return {name: _layer_bars(operator) for name, operator in operators.items()}


def _layer_bars(operator: Operator) -> list[Bar]:
    source, grown = _grown(_model(LAYERS), operator)
    bars = []
    for new, old in enumerate(operator.layer_sources(LAYERS)):
        copied = torch.equal(grown[IN.format(new)], source[IN.format(old)])
        ratio = (grown[OUT.format(new)].norm() / source[OUT.format(old)].norm()).item()
        bars.append(Bar(old if copied else None, height=ratio if copied else float(ratio > 0)))
    return bars


def width_rows() -> Rows:
    """The source of every expert, found by comparing weights, and where one token goes."""

    def by(method: WidthMethod, **how: float) -> Operator:
        return Operator(width_method=method, width_factor=2, seed=1, **how)  # type: ignore[arg-type]

    operators = {
        "source, top-2": Operator(),
        "duplicate, α = 0": by(WidthMethod.DUPLICATE),
        "duplicate, α > 0": by(WidthMethod.DUPLICATE, noise_scale=0.05),
        "experts_only": by(WidthMethod.EXPERTS_ONLY),
        "top_k_only": by(WidthMethod.TOP_K_ONLY),
        "split": by(WidthMethod.SPLIT),
        "drop_upcycle, drop_fraction=0.5": by(WidthMethod.DROP_UPCYCLE, drop_fraction=0.5),
        "random_experts": by(WidthMethod.RANDOM_EXPERTS),
    }
    return {name: _expert_bars(operator) for name, operator in operators.items()}


def _expert_bars(operator: Operator) -> list[Bar]:
    model = _model(1)
    source, grown = _grown(model, operator)
    token_1D = torch.randn(1, model.hidden_size, generator=torch.Generator().manual_seed(5))
    routing = route(token_1D @ grown["layers.0.moe.router.weight"].T, operator.apply_to(model))
    gates = dict(zip(routing.experts_Nk[0].tolist(), routing.gates_Nk[0].tolist(), strict=True))
    bars = []
    old_EGD = source[IN.format(0)]
    for expert, new_GD in enumerate(grown[IN.format(0)]):
        distance_EGG = torch.cdist(new_GD.expand(EXPERTS, -1, -1), old_EGD) / old_EGD.norm(dim=-1).mean()
        kept_E = (distance_EGG.amin(-1) < 0.5).float().mean(-1)  # rows that some row of the source resembles
        best = int(kept_E.argmax())
        exact = all((old_EGD[best] == row).all(-1).any() for row in new_GD) if kept_E[best] == 1 else True
        bars.append(
            Bar(
                source=best if kept_E[best] > 0 else None,
                height=len(new_GD) / old_EGD.shape[1],
                noisy=not exact,
                fresh=1 - kept_E[best].item(),
                gate=gates.get(expert, 0.0),
            )
        )
    return bars


@dataclass(frozen=True)
class Part:
    """Some steps of one shape: a piece of a cell's path."""

    shape: str
    steps: int
    flops: float
    anneals: bool


def chain_rows() -> dict[str, list[Part]]:
    """The paths of chain.yaml, width_then_depth.yaml and the former's controls at the default budget."""
    cells = {}
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        for name in ("chain", "width_then_depth"):
            chosen = [f"growth={name}", "controls=[continued,scratch_extra,scratch_total]"]
            plain = OmegaConf.to_container(compose("config", overrides=chosen), resolve=True)
            assert isinstance(plain, dict)
            cells[name] = resolve(parse_sweep({str(key): value for key, value in plain.items()}))
    controls = {str(name): control for name, control in cells["chain"].controls.items()}
    return {name: _parts(cell.leaf) for name, cell in (cells | controls).items()}


def _parts(leaf: Address) -> list[Part]:
    return [
        Part(
            shape=f"{t.model.num_layers} layers, {t.model.num_experts} experts, top-{t.model.top_k}",
            steps=steps,
            flops=steps * t.flops_per_step,
            anneals=t.kind is Kind.ANNEAL,
        )
        for t, steps in leaf.segments()
    ]


# --------------------------------------------------------------------------------------------------------
# Drawing


def draw_bars(rows: Rows, colours: list[str], legend: list[Patch]) -> Figure:
    """One line of bars per row, its name on the left; a dot below a bar is a gate, its area the weight."""
    gated = any(bar.gate for bars in rows.values() for bar in bars)
    pitch, left = 1.75 if gated else 1.4, 0.5 + 0.14 * max(map(len, rows))
    figure, axes = _figure((left + 8) / 2, 0.31 * pitch * len(rows) + (0.32 if legend else 0))
    for row, (name, bars) in enumerate(rows.items()):
        bottom = -row * pitch
        axes.text(-0.3, bottom + 0.5, name, ha="right", va="center")
        for place, bar in enumerate(bars):
            _draw_bar(axes, place, bottom, bar, colours)
            if bar.gate:
                axes.scatter(place + 0.45, bottom - 0.3, s=95 * bar.gate, color=INK, linewidths=0)
    axes.set_xlim(-left, 8)
    axes.set_ylim(-(len(rows) - 1) * pitch - (0.65 if gated else 0.2), 1.15)
    if legend:
        columns = {"ncols": len(legend), "columnspacing": 1.5}
        figure.legend(handles=legend, loc="outside lower center", handlelength=1.4, **columns)
    return figure


def _draw_bar(axes: Axes, place: int, bottom: float, bar: Bar, colours: list[str]) -> None:
    colour = NEW if bar.source is None else colours[bar.source]
    kept = bar.height * (1 - bar.fresh)
    if bar.height == 0:
        frame = Rectangle((place + 0.02, bottom), 0.86, 1, fill=False, edgecolor=colour, linewidth=1.8)
        axes.add_patch(frame)
    else:
        axes.add_patch(Rectangle((place, bottom), 0.9, kept, facecolor=colour, linewidth=0))
        axes.add_patch(Rectangle((place, bottom + kept), 0.9, bar.height - kept, facecolor=NEW, linewidth=0))
    if bar.noisy:
        dots = {"edgecolor": INK, "linewidth": 1.6, "linestyle": (0, (1, 1))}
        axes.add_patch(Rectangle((place + 0.03, bottom + 0.03), 0.84, bar.height - 0.06, fill=False, **dots))
    if bar.source is not None:
        dark = bar.height > 0 and sum(matplotlib.colors.to_rgb(colour)) < 1.45
        middle = bottom + (0.5 if bar.height == 0 else kept / 2)
        text = "white" if dark else INK
        axes.text(place + 0.45, middle, str(bar.source), ha="center", va="center_baseline", color=text)


def draw_chain(rows: dict[str, list[Part]]) -> Figure:
    """Each path along its training FLOPs; the pieces are coloured by shape and carry their steps."""
    shapes = list(dict.fromkeys(part.shape for parts in rows.values() for part in parts))
    colours = dict(zip(shapes, OKABE_ITO, strict=True))
    figure, axes = _figure(7.2, 2.75)
    for row, (name, parts) in enumerate(rows.items()):
        start = 0.0
        axes.text(-0.02, -row + 0.35, name, ha="right", va="center")
        for part in parts:
            width = part.flops / 1e12
            look = {"facecolor": colours[part.shape], "edgecolor": "white", "linewidth": 0.8}
            axes.add_patch(Rectangle((start, -row), width, 0.7, hatch="//" if part.anneals else None, **look))
            if width > 0.06:
                box = {"facecolor": colours[part.shape], "edgecolor": "none", "pad": 1}
                text = str(part.steps)
                axes.text(start + width / 2, -row + 0.35, text, ha="center", va="center", bbox=box)
            start += width
    growth = rows["chain"][0].flops / 1e12
    axes.plot([growth, growth], [-1.1, 1.15], color=INK, linewidth=1, linestyle=(0, (3, 2)))
    axes.text(growth - 0.015, 0.98, "sunk", ha="right", va="center")
    axes.text(growth + 0.015, 0.98, "extra", ha="left", va="center")
    axes.set_xlim(-0.32, 1.6)
    axes.set_ylim(-len(rows) + 0.75, 1.2)
    ticks = [0.0, 0.5, 1.0, 1.5]
    axes.set_axis_on()
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 1.6)
    axes.set_xlabel("training FLOPs / 10¹²; numbers are steps", x=0.58)
    legend = [Patch(facecolor=colours[shape], label=shape) for shape in shapes]
    legend.append(Patch(facecolor=NEW, hatch="///", label="anneal"))
    figure.legend(handles=legend, loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.5)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    return figure, axes


def main() -> None:
    settings = {"font.family": "DejaVu Sans", "font.size": 9, "legend.frameon": False, "legend.fontsize": 8}
    layers = [matplotlib.colors.to_hex(VIRIDIS(0.92 * i / (LAYERS - 1))) for i in range(LAYERS)]
    new = Patch(facecolor=NEW, label="drawn anew")
    noisy = Patch(facecolor="white", edgecolor=INK, linestyle=(0, (1, 1)), label="with noise")
    zeroed = Patch(facecolor="white", edgecolor=INK, label="adds nothing at first")
    token = Patch(facecolor=INK, label="dots: where one token goes, area = gate")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**settings, "text.color": INK, "hatch.color": "white"})
        pictures = {
            "depth": draw_bars(depth_rows(), layers, []),
            "copies": draw_bars(copies_rows(), layers, [zeroed, new]),
            "width": draw_bars(width_rows(), list(OKABE_ITO), [noisy, new, token]),
            "chain": draw_chain(chain_rows()),
        }
        for name, figure in pictures.items():
            path = ROOT / "docs" / "images" / f"growth-{name}.png"
            figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
