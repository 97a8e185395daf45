"""One grid twice: as a tree of states, and cell by cell by hydra-ray-launcher. Wall time and FLOPs of both.

`python benchmarks/side_by_side.py [OVERRIDE ...]`, with `pip install hydra-ray-launcher` before. Both use two
workers of one thread; without controls, so that both run just the cells that are asked for.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRID = ["growth=depth", "growth.step=200,400,800", "growth.method=stack,interposition", "trunk.steps=800"]
COMMON = ["train.batch_size=8", "budget.extra_flops=3e11", "controls=[]", "launch.threads=1"]
PEER = [
    *("hydra/launcher=ray", "hydra/sweeper=basic", "+hydra.launcher.ray.init.num_cpus=2"),
    *("+hydra.launcher.ray.remote.num_cpus=1", "launch=serial"),
]


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tree_s, tree = run(
            place / "tree", ["launch.workers=2", f"launch.store={place}/tree/store"], overrides
        )
        peer = [*PEER, f"launch.store={place}/peer/store-${{hydra:job.num}}"]
        peer_s, alone = run(place / "peer", peer, overrides)
        plan = json.loads(next(place.glob("tree/store/studies/*/plan.json")).read_text())
    print(
        f"\n{plan['cells']} cells; FLOPs of all cells alone / as a tree: {plan['flops_naive']:.3g} / ", end=""
    )
    print(f"{plan['flops_shared']:.3g}, the ideal ratio {plan['flops_naive'] / plan['flops_shared']:.2f}")
    print(f"{'':24}{'as a tree':>12}{'cell by cell':>14}{'ratio':>8}")
    print(f"{'FLOPs trained':24}{tree:12.3g}{alone:14.3g}{alone / tree:8.2f}")
    print(f"{'wall time, s':24}{tree_s:12.1f}{peer_s:14.1f}{peer_s / tree_s:8.2f}")


def run(place: Path, words: list[str], overrides: list[str]) -> tuple[float, float]:
    """Seconds of the whole command, and the FLOPs that its stores say were trained."""
    place.mkdir()
    command = [sys.executable, str(ROOT / "sweep.py"), "-m", *GRID, *COMMON, *words, *overrides]
    begin = time.perf_counter()
    subprocess.run([*command, f"hydra.sweep.dir={place}/hydra"], cwd=ROOT, check=True)
    seconds = time.perf_counter() - begin
    summaries = [json.loads(path.read_text()) for path in place.glob("store*/studies/*/summary.json")]
    return seconds, sum(summary["spent_flops"] for summary in summaries)


if __name__ == "__main__":
    main(sys.argv[1:])
