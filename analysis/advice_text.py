"""Advice in words for a terminal, and advice.json beside it."""

import json
from pathlib import Path

from analysis.advice import Advice, Option, Reach, advise
from analysis.budget import Estimate
from analysis.floor import Asked
from analysis.held_out import HeldOut
from analysis.table import cells_table
from sweeps.store import Store


def write_advice(
    store: Store,
    study: str,
    directory: str | Path,
    *,
    sunk_flops: float,
    activated_params: float,
    extra_flops: float,
    arm: str | None = None,
    floor: Asked = None,
) -> str:
    """Writes advice.json into `directory` and returns the advice in words; if refused, nothing is written."""
    advice = advise(
        cells_table(store, study),
        sunk_flops=sunk_flops,
        activated_params=activated_params,
        extra_flops=extra_flops,
        arm=arm,
        floor=floor,
    )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    words = text(advice, study)
    found = {"study": study, "recommendation": recommendation(advice), **advice.plain()}
    (directory / "advice.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return words


def recommendation(advice: Advice) -> str:
    """One sentence: what to do, its net and interval, and whether the study decides it."""
    first = advice.options[0]
    if not advice.decided:
        rival = first if first.arm else next(o for o in advice.options if o.arm)
        return (
            f"Undecided: {_named(rival, advice)} ends {_net(rival)} against continuing, and that interval "
            "contains 0. Continuing needs no growth; more seeds narrow the interval."
        )
    if first.what == "continue":
        second = advice.options[1]
        return f"Continue. The next best, {_named(second, advice)}, ends {_net(second)} against it."
    named = _named(first, advice)
    return f"{named[0].upper()}{named[1:]}. It ends {_net(first)} against continuing."


def text(advice: Advice, study: str) -> str:
    """The recommendation, every option, ρ and break-even of each arm, and the limits of all this."""
    ratios = {reach.name: reach.value for reach in advice.reach}
    lines = [
        recommendation(advice),
        "",
        f"Asked: N_a = {advice.activated_params:.4g}, sunk {advice.sunk_flops:.4g} FLOPs = "
        f"{ratios['sunk / F_c']:.3g} F_c, extra {advice.extra_flops:.4g} FLOPs = "
        f"{ratios['extra / sunk']:.3g} of sunk.",
        f"From: study {study}, {advice.n_trunks} trunk{'s' if advice.n_trunks > 1 else ''}, "
        f"{advice.n_branches} grown cells; the {advice.law} law; intervals 95 %, {advice.interval_from}.",
        *([advice.floor.why] if advice.floor.why else []),
        "",
        f"{'option':<44}{'loss':>8}  {'net, nats':<30}net, points of accuracy",
        *(_row(option, advice) for option in advice.options),
        "",
        *(f"{arm}: {_efficiency(advice.rho[arm])}; {_even(even)}" for arm, even in advice.break_even.items()),
        "",
        *(_reach(reach) for reach in advice.reach),
        _held_out(advice.held_out),
        *(f"No law for {arm}: {reason}" for arm, reason in advice.refused.items()),
    ]
    return "\n".join(lines)


def _named(option: Option, advice: Advice) -> str:
    if option.what == "grow":
        return f"grow by {option.arm} now"
    if option.what == "grow later":
        after = option.train_on_f_c * advice.f_c
        return f"grow by {option.arm} after {after:.3g} more FLOPs"
    return "start over" if option.what == "start over" else "continue"


def _net(option: Option) -> str:
    said = f"{_signed(option.net, 4)} nats ({_signed(option.net_low, 4)} to {_signed(option.net_high, 4)})"
    return (
        said if option.net_acc is None else f"{said}, {_signed(100 * option.net_acc, 1)} points of accuracy,"
    )


def _row(option: Option, advice: Advice) -> str:
    start = f"{_named(option, advice):<44}{option.loss:>8.4f}"
    if option.what == "continue":
        return start
    nats = f"{_signed(option.net, 4)} ({_signed(option.net_low, 4)} to {_signed(option.net_high, 4)})"
    if option.net_acc is None:
        return f"{start}  {nats}"
    ends = [_signed(100 * (end or 0.0), 1) for end in (option.net_acc_low, option.net_acc_high)]
    return f"{start}  {nats:<30}{_signed(100 * option.net_acc, 1)} ({ends[0]} to {ends[1]})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _efficiency(rho: Estimate) -> str:
    return f"ρ = {rho.value:.2f}{_between(rho)}, what a sunk FLOP is worth of one after growth"


def _even(even: Estimate) -> str:
    if even.value is None:
        return f"against continuing, {even.note}"
    side = even.note.removeprefix("growing ")
    return f"even with continuing at extra/sunk = {even.value:.2f}{_between(even)}; growing {side}"


def _between(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    high = f"{estimate.high:.2f}" if estimate.high < float("inf") else "beyond 100"
    return f" ({estimate.low:.2f} to {high})"


def _reach(reach: Reach) -> str:
    said = f"{reach.name} = {reach.value:.4g}; studied: {reach.low:.4g} to {reach.high:.4g}"
    if reach.beyond <= 1.0 + 1e-9:
        return f"{said}: within."
    times = f"{reach.beyond:.2g}" if reach.beyond < 100 else f"{reach.beyond:.0f}"
    return f"{said}: extrapolated {times} times beyond; the intervals do not cover that."


def _held_out(held: HeldOut) -> str:
    if held.net_error is None:
        return (
            f"Held out: no larger size, for {held.because}; how far this carries over sizes is not measured."
        )
    said = (
        f"Held out: N_a = {held.activated_params:.4g}, foretold by the smaller sizes: net off by "
        f"{held.net_error:.4f} nats (RMS), its sign right in {held.same_sign} of {held.n_branches} branches"
    )
    return f"{said}." if held.loss_error is None else f"{said}, loss off by {100 * held.loss_error:.1f} %."
