"""All benchmarks as one report: `python benchmarks/measure.py [--only sweeps,tasks] [--write | --check]`.

Prints Markdown: the machine, then a section for each benchmark, each run in a process of its own. `--write`
puts it into docs/measurements.md, where it replaces what the same machine wrote under the same titles, and
keeps its ratios in benchmarks/ratios.json. `--check` compares today's ratios with those kept and exits with 1
if one fell by more than a tenth. `--quick` tries every section with few rounds: no figures to keep.
"""

import argparse
import importlib
import sys
import time
from typing import Any

import ratios
from alone import alone
from measurements import PATH, written
from section import Section

# name: (module, arguments, arguments with --quick). Modules are imported where they run.
SECTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "throughput": (
        "throughput",
        {"models": ["nano", "micro", "small"]},
        {"models": ["nano"], "rounds": 1, "steps": 1},
    ),
    "replay": (
        "replay",
        {"models": ["nano", "micro", "small"]},
        {"models": ["nano"], "rounds": 1, "steps": 1},
    ),
    "tasks": ("task_start", {}, {"steps": 2, "sequences": 2}),
    "sweeps": (
        "overhead",
        {},
        {
            "overrides": [
                *("growth.step=0,20", "trunk.steps=40", "budget.extra_flops=1e10", "train.batch_size=2"),
                *(
                    "train.warmup_steps=2",
                    "growth.warmup_steps=2",
                    "evaluate.items=20",
                    "evaluate.probe_items=20",
                ),
            ]
        },
    ),
    "diagnostics": ("diagnostics", {}, {"rounds": 1}),
    "checkpoints": ("checkpoint", {}, {"model": "nano", "rounds": 1}),
    "growth": ("growth", {}, {"model": "nano", "rounds": 1}),
    "recycle": ("recycle", {}, {"gb": 0.2, "rounds": 1}),
    "planning": ("plan_command", {}, {"planned": 100}),
}
CHECKED = ("throughput", "replay", "sweeps")  # have ratios that are kept


def run(name: str, quick: bool) -> Section:
    module, usual, few = SECTIONS[name]
    return importlib.import_module(module).section(**(few if quick else usual))


def machine() -> tuple[str, str]:
    """Its name, and one line about it."""
    import computer

    return computer.name(), computer.describe()


def main() -> int:
    args = _arguments()
    name, described = alone(machine)
    print(f"{described}\n", flush=True)
    found, failed = [], []
    for each in args.only:
        begin = time.perf_counter()
        try:
            section = alone(run, each, args.quick)
        except Exception as error:  # the others are still worth their time
            failed.append(each)
            print(f"### {each}\n\nfailed: {error!r}\n", flush=True)
            continue
        found.append(section)
        print(f"### {section.title}\n\n{section.text}", flush=True)
        print(f"{each}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    today = {ratio: value for section in found for ratio, value in section.ratios.items()}
    if args.write:
        PATH.write_text(written(PATH.read_text(), time.strftime("%Y-%m-%d"), name, described, found))
        if today:
            ratios.keep(name, today)
    fell = ratios.compare(name, today) if args.check else 0
    return 1 if failed else fell


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--write", action="store_true")
    kept.add_argument("--check", action="store_true")
    args = parser.parse_args()
    args.only = args.only.split(",") if args.only else list(CHECKED if args.check else SECTIONS)
    for each in args.only:
        if each not in SECTIONS:
            parser.error(f"{each} is no section; choose of {', '.join(SECTIONS)}")
    if args.quick and (args.write or args.check):
        parser.error("--quick gives no figures to keep or compare")
    return args


if __name__ == "__main__":
    sys.exit(main())
