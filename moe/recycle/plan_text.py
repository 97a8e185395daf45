"""A plan in words for a terminal: sizes before and after, what changes in config.json, what is promised."""

from moe.recycle.plan import Plan, Size

_EXACTNESS = {
    "exact": "unchanged up to rounding",
    "perturbed": "unchanged but for the noise",
    "first_order": "changed at second order in what a layer adds",
    "changed": "changed; training has to make up for it",
}


def plan_lines(plan: Plan, seconds: float, threads: int) -> list[str]:
    """What growing would give, and take: `seconds` on so many cores; everything here is from headers."""
    rows = [("", "before", "after"), *_rows(plan.before, plan.after)]
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [
        "  ".join([row[0].ljust(width[0]), row[1].rjust(width[1]), row[2].rjust(width[2])]) for row in rows
    ]
    config = {key: value for key, value in plan.config.items() if plan.source.config.get(key) != value}
    changes = [
        f"  {key}: {_short(plan.source.config.get(key))} → {_short(value)}" for key, value in config.items()
    ]
    label = plan.operator.label
    return [
        f"{plan.architecture.model_type}, {label}",
        *table,
        f"time to write: {seconds:.2g} s on {threads} cores of its own, if the disk takes "
        f"{plan.after.num_bytes / 1e6 / max(seconds, 1e-9):.0f} MB/s",
        f"function: {plan.exactness.value} ({_EXACTNESS[plan.exactness.value]})",
        "config.json:",
        *changes,
    ]


def _rows(before: Size, after: Size) -> list[tuple[str, str, str]]:
    numbers = {
        "layers": lambda size: f"{size.layers}",
        "experts, top-k": lambda size: f"{size.experts}, {size.top_k}",
        "parameters": lambda size: f"{size.total_params / 1e9:.3g}B",
        "activated parameters": lambda size: f"{size.activated_params / 1e9:.3g}B",
        "training FLOPs per token": lambda size: f"{size.train_flops_per_token:.3g}",
        "on disk": lambda size: f"{size.num_bytes / 1e9:.3g} GB",
    }
    return [(name, show(before), show(after)) for name, show in numbers.items()]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
