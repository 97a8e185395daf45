"""The ratios that are kept from run to run, by machine, in ratios.json. No torch.

Ratios of one run hold on a machine that is shared and noisy, where seconds do not; none is timed in CI.
"""

import json
from pathlib import Path

from section import table

PATH = Path(__file__).resolve().parent / "ratios.json"
TOLERANCE = 0.10  # a ratio may fall by this share of what was kept
CLOSE = {"sweep: 1 − overhead, mean": 0.03}  # near 1 whatever happens: a tenth of it would be never


def keep(machine: str, today: dict[str, float]) -> None:
    """In place of those kept of this machine under the same names."""
    kept = _kept()
    rounded = {name: round(value, 3) for name, value in today.items()}
    kept[machine] = kept.get(machine, {}) | rounded
    PATH.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def compare(machine: str, today: dict[str, float]) -> int:
    """Prints today's ratios beside those kept; 1 if one fell too far, 2 if none is kept of this machine."""
    kept = _kept().get(machine)
    if not kept:
        print(f"no ratios are kept of {machine}; run with --write on a quiet machine first")
        return 2
    rows, fell = [], []
    for name, value in today.items():
        if name not in kept:
            rows.append([name, "", f"{value:.3f}", "not kept yet"])
            continue
        change = value / kept[name] - 1
        if change < -CLOSE.get(name, TOLERANCE):
            fell.append(name)
        rows.append([name, f"{kept[name]:.3f}", f"{value:.3f}", f"{change:+.1%}"])
    for name in kept.keys() - today.keys():
        rows.append([name, f"{kept[name]:.3f}", "", "not measured"])
    print(table(["ratio, the larger the better", "kept", "today", "change"], rows))
    print("\n".join(f"fell too far: {name}" for name in fell) or "none fell too far")
    return 1 if fell else 0


def _kept() -> dict[str, dict[str, float]]:
    return json.loads(PATH.read_text()) if PATH.exists() else {}
