"""Where a page's numbers come from: runs, commits, versions, machines, seeds and trajectories."""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd

from analysis.page import plain
from sweeps.store import Store


def study_provenance(store: Store, study: str, cells: pd.DataFrame, command: str) -> dict[str, Any]:
    """The facts of one study's page, and the ids of the trajectories behind it: no path but the command's."""
    stored = store.study(study)
    plan, summary = stored["plan"] or {}, stored["summary"] or {}
    naive, shared = plan.get("flops_naive"), plan.get("flops_shared")
    facts = {
        "cells asked for": plan.get("cells"),
        "controls added": plan.get("controls"),
        "trajectories": plan.get("trajectories"),
        "FLOPs if each cell trained alone": plain(naive, "{:.3g}"),
        "FLOPs with what cells share trained once": plain(shared, "{:.3g}"),
        "ratio": plain(naive / shared, "{:.2f}×") if naive and shared else "–",
        "FLOPs to derive states again (rewind)": plain(plan.get("flops_rewind"), "{:.3g}"),
        "FLOPs spent by the last run": plain(summary.get("spent_flops"), "{:.3g}"),
        "seconds of the last run": plain(summary.get("wall_s"), "{:.0f}"),
        "cells of the last run: done / cached / failed / blocked / diverged": " / ".join(
            str(summary.get(name, "–")) for name in ("done", "cached", "failed", "blocked", "diverged")
        ),
    }
    facts |= _runs({study: cells}, [summary]) | {"machines": machines(store, trajectories(store, [study]))}
    ids = {"trunks": sorted(set(cells.loc[cells["kind"] == "branch", "trunk_id"]) - {""})}
    return {"facts": _shown(facts, command), **ids, "ends": sorted(set(cells["trajectory_id"]) - {""})}


def paper_provenance(store: Store, studies: Mapping[str, pd.DataFrame], command: str) -> dict[str, Any]:
    """The same of a page of many studies."""
    summaries = [store.study(name)["summary"] or {} for name in studies]
    runs = [run for summary in summaries for run in summary.get("runs", [])]
    used = trajectories(store, studies)
    facts = {
        "trajectories": len(used),
        "FLOPs trained by all runs": _total(runs, "spent_flops", 1.0),
        "hours of all runs": _total(runs, "wall_s", 3600.0),
    }
    facts |= _runs(studies, summaries) | {"machines": machines(store, used)}
    grown = [cells[cells["kind"] == "branch"] for cells in studies.values()]
    trunks = sorted({str(trunk) for own in grown for trunk in own["trunk_id"]} - {""})
    return {"facts": _shown(facts, command), "trunks": trunks}


def _total(runs: list[dict[str, Any]], name: str, unit: float) -> str:
    known = [run[name] for run in runs if run.get(name) is not None]
    return f"{sum(known) / unit:.3g}" if known else "–"


def trajectories(store: Store, studies: Iterable[str]) -> list[str]:
    """The ids of all trajectories on the paths of these studies' cells."""
    stored = (store.study(name)["cells"] or {} for name in studies)
    return sorted({p["trajectory_id"] for study in stored for c in study.get("cells", []) for p in c["path"]})


def machines(store: Store, trajectory_ids: Iterable[str]) -> str:
    """Each machine that trained them, by processor, device and threads, with the tasks that it did."""
    tasks: Counter[str] = Counter()
    for trajectory in trajectory_ids:
        for line in store.timings(trajectory) or []:
            named = [str(line[name]) for name in ("processor", "device") if line.get(name)]
            if named:
                threads = line.get("threads")
                many = f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
                tasks[f"{' on '.join(dict.fromkeys(named))}{many}"] += 1
    return "; ".join(f"{name} ({n} task{'s' if n != 1 else ''})" for name, n in tasks.most_common())


def _runs(studies: Mapping[str, pd.DataFrame], summaries: list[dict[str, Any]]) -> dict[str, str]:
    seeds = sorted({seed for cells in studies.values() for seed in cells["seed"].dropna()})
    evaluations = sorted({name for cells in studies.values() for name in cells["eval_id"]} - {""})
    commits = sorted({str(s["git_commit"]) for s in summaries if s.get("git_commit")})
    versions = sorted({f"{k} {v}" for s in summaries for k, v in (s.get("versions") or {}).items()})
    return {
        "seeds": ", ".join(f"{seed:g}" for seed in seeds),
        "evaluations (eval_id)": ", ".join(evaluations),
        "git commits of the runs": ", ".join(commits),
        "versions of the runs": ", ".join(versions),
    }


def _shown(facts: dict[str, Any], command: str) -> dict[str, str]:
    report = {"versions of the report": ", ".join(f"{k} {v}" for k, v in _versions().items())}
    whole = facts | report | {"command": command}
    return {name: "–" if value in (None, "") else str(value) for name, value in whole.items()}


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in ("regrow", "numpy", "pandas", "scipy", "matplotlib"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed as a package"
    return out
