"""The page's section on how accuracy goes with sunk FLOPs, as rows ready to be printed."""

from typing import Any

from analysis.page import between, plain

_SERIES = {
    "net": "net",
    "without_scratch": "final accuracy",
    "with_scratch": "… with scratch at 0",
    "start_stable": "… stable starts",
    "start_annealed": "… annealed starts",
    "gain_over_scratch_extra": "− scratch, equal extra",
    "gain_over_scratch_total": "− scratch, equal total",
}
_EVERY_ARM = ("net", "without_scratch")  # the others for all arms together: correlation.json has the rest
_DIFFERENCES = ("net", "gain_over_scratch_extra", "gain_over_scratch_total")
_PER = 1e12  # FLOPs that slopes are shown per, as in `correlate`

Row = dict[str, str]


def statistics_rows(correlation: dict[str, Any]) -> dict[str, Any]:
    """What `correlate` found, as the tables `coefficients`, `slopes`, `means`, `base`, and sentences `why`.

    A part that was refused is its sentence. Differences in points, slopes in points per 1e12 FLOPs; what
    each number means is in docs/statistics.md.
    """
    parts = _parts(correlation)
    measured = [one for one in parts if not one[-1]["refused"]]
    return {
        "coefficients": _condensed([_named(y, arm, part) | _coefficients(part) for y, arm, part in parts]),
        "slopes": [_named(y, arm, part) | _slopes(part) for y, arm, part in measured],
        "means": [_named(y, arm, part) | _means(part) for y, arm, part in parts if _has_mean(y, part)],
        "base": _given_the_base(correlation["given_the_base"]),
        "why": _reasons([part for *_, part in parts]),
    }


def _parts(correlation: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(y, way of growing, numbers) of what is shown; one way of growing is not shown pooled as well."""
    series = correlation["series"]
    arms = [arm for arm in series if arm != "pooled"]
    shown = []
    for y in _SERIES:
        of_arms = [*arms, "pooled"] if y in _EVERY_ARM and len(arms) > 1 else ["pooled"]
        for arm in of_arms:
            part = series[arm].get(y)
            if part and (part["n_cells"] or y in _EVERY_ARM):
                label = "all ways" if arm == "pooled" else arm
                shown.append((y, arms[0] if len(arms) == 1 else label, part))
    return shown


def _named(y: str, arm: str, part: dict[str, Any]) -> Row:
    return {"y": _SERIES[y], "arm": arm, "n": f"{part['n_cells']} ({part['n_trunks']})"}


def _coefficients(part: dict[str, Any]) -> Row:
    null = part["monotone_null"]
    share = (null or {}).get("share_above")
    return {
        "refused": part["refused"] or "",
        "null": f"{null['median']:.2f} ({null['low']:.2f} to {null['high']:.2f})" if null else "–",
        "pearson": plain(part["pearson"]),
        "share": plain(_times(share, 100), "{:.0f} %"),
        "pearson_log": plain(part["pearson_log_sunk"]),
        "ranks": f"{plain(part['spearman'])} / {plain(part['kendall'])}",
        "residuals": f"{plain(part['lag1'])} / {plain(part['durbin_watson'])}",
    }


def _slopes(part: dict[str, Any]) -> Row:
    over_trunks, mixed = part["interval"] or {}, part["mixed_model"] or {}
    drawn, least = part["cluster_bootstrap"] or {}, over_trunks.get("minimum_detectable") or {}
    return {
        "slope": plain(_times(part["theil_sen"]["slope"], 100), "{:+.3g}"),
        "interval": between(over_trunks.get("theil_sen_slope"), 100, "{:+.3g}"),
        "p": _p((over_trunks.get("p") or {}).get("theil_sen_slope")),
        "mixed": plain(_times(mixed.get("slope"), 100), "{:+.3g}"),
        "mixed_interval": between(mixed.get("slope_interval"), 100, "{:+.3g}"),
        "spread": plain(_times(mixed.get("slope_sd"), 100), "{:.2g}"),
        "bootstrap": between(drawn.get("slope_within"), 100, "{:+.3g}"),
        "least": plain(_times(least.get("theil_sen_slope"), 100), "{:.2g}"),
    }


def _has_mean(y: str, part: dict[str, Any]) -> bool:
    return y in _DIFFERENCES and part["mean"] is not None and _why_no_mean(part) is None


def _why_no_mean(part: dict[str, Any]) -> str | None:
    """A mean is not refused with its correlation, unless what it averages cannot be averaged."""
    return part["refused"] if part["refused"] and "eval_id" in part["refused"] else None


def _means(part: dict[str, Any]) -> Row:
    over_trunks, drawn = part["interval"] or {}, part["cluster_bootstrap"] or {}
    seen, alone = over_trunks.get("minimum_detectable") or {}, part["minimum_detectable"] or {}
    return {
        "mean": plain(_times(part["mean"], 100), "{:+.2f}"),
        "interval": between(over_trunks.get("mean"), 100, "{:+.2f}"),
        "p": _p((over_trunks.get("p") or {}).get("mean")),
        "bootstrap": between(drawn.get("mean"), 100, "{:+.2f}"),
        "least": plain(_times(seen.get("mean"), 100), "{:.2f}"),
        "two_cells": plain(_times(alone.get("between_two_cells"), 100), "{:.2f}"),
        "over_the_range": plain(_times(alone.get("over_the_range"), 100), "{:.2f}"),
    }


def _given_the_base(found: dict[str, Any]) -> Row:
    if found["refused"]:
        return {"refused": found["refused"]}
    per = 100 * _PER
    return {
        "refused": "",
        "n": f"{found['n_cells']} ({found['n_trunks']})",
        "direct": plain(_times(found["direct"], per), "{:+.3g}"),
        "direct_interval": between(found["direct_interval"], per, "{:+.3g}"),
        "partial": plain(found["partial"]),
        "partial_interval": between(found["partial_interval"], 1, "{:.2f}"),
        "because": found["no_partial_because"] or "",
        "reliability": plain(found["reliability"]),
        "uncorrected": plain(found["uncorrected"]),
    }


def _reasons(parts: list[dict[str, Any]]) -> list[str]:
    """Why there is no interval of some kind, each reason once, of the parts that have coefficients."""
    out: dict[str, None] = {}
    for part in parts:
        if part["refused"]:
            continue
        kinds = ["interval", *(("mixed_model", "cluster_bootstrap") if part["n_trunks"] > 1 else ())]
        for kind in kinds:
            if reason := part[f"no_{kind}_because"]:
                out[_short(kind, reason)] = None
    return list(out)


def _short(kind: str, reason: str) -> str:
    """What a kind of interval takes; how many trunks there are stands in the table."""
    if kind == "interval":
        return reason
    takes = reason.removeprefix("No interval by it: ").split(" takes ", 1)[-1].split("; here")[0].rstrip(".")
    return f"No {kind.replace('_', ' ')}: it takes {takes}."


def _condensed(rows: list[Row]) -> list[Row]:
    """Arms that are refused for the same reason in one row, so that many small arms are not many rows."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        alone = row["arm"] if not row["refused"] or row["arm"] == "all ways" else ""
        groups.setdefault((row["y"], row["refused"], alone), []).append(row)
    return [
        own[0] if len(own) == 1 else {**own[0], "arm": f"each of {len(own)} ways of growing"}
        for own in groups.values()
    ]


def _p(value: float | None) -> str:
    return "< .001" if value is not None and value < 0.001 else plain(value, "{:.2g}")


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
