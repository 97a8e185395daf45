"""Writes the page of a stored study, or advises from it: `python report.py study=quickstart`."""

import shlex
import sys

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.advice_text import write_advice
from analysis.comparison import write_comparison
from analysis.floor import floor_asked
from analysis.paper_report import write_paper
from analysis.report import write_report
from moe.plain import check
from sweeps.store import Store

TASKS = ("page", "advise", "compare", "paper")
QUESTION = ("sunk_flops", "activated_params", "extra_flops")


@hydra.main(config_path="conf/report", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Prints the page's path and its first sentence, or the advice; refuses with one line and exit code 2."""
    try:
        raw = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(raw, dict), "a DictConfig becomes a dict"
        report(raw)
    except (ValueError, OSError, OmegaConfBaseException) as error:
        print(f"report.py: {error}", file=sys.stderr)
        sys.exit(2)


def report(raw: dict) -> None:
    store = Store(str(raw["launch"]["store"]))
    study, task, delta = raw["study"], raw["do"], raw["report"]["delta"]
    known = ", ".join(store.studies()) or "none yet"
    check(task in TASKS, f"do={task} is not a choice; choose one of {', '.join(TASKS)}")
    check(
        study is not None or task == "paper",
        f"study is missing; {store.root} holds: {known}; try python report.py study=NAME",
    )
    check(
        not isinstance(study, list | dict),
        f"study={study} must be the name of one study; {store.root} holds: {known}",
    )
    number = isinstance(delta, int | float) and not isinstance(delta, bool)
    check(number and 0 < delta < 1, f"report.delta={delta} must be a fraction of accuracy between 0 and 1")
    directory = str(raw["report"]["dir"] or f"reports/{'paper' if task == 'paper' else study}")
    command = shlex.join(["python", "report.py", *sys.argv[1:]])
    match task:
        case "advise":
            print(advice(store, str(study), directory, raw))
        case "compare":
            check(raw["against"] is not None, f"against is missing; {store.root} holds: {known}")
            print(write_comparison(store, str(study), str(raw["against"]), directory, delta=delta))
        case "paper":
            paper = write_paper(store, directory, delta=delta, command=command)
            print(paper.page)
            print(paper.opening)
        case _:
            page = write_report(store, str(study), directory, delta=delta, command=command)
            print(page.page)
            print(page.opening)


def advice(store: Store, study: str, directory: str, raw: dict) -> str:
    numbers = {name: raw[name] for name in QUESTION}
    for name, value in numbers.items():
        if value is None:
            raise ValueError(f"{name} is missing; do=advise needs {', '.join(QUESTION)}, such as {name}=3e18")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        check(number, f"{name}={value} must be a number")
    arm = None if raw["arm"] is None else str(raw["arm"])
    return write_advice(store, study, directory, arm=arm, floor=floor_asked(raw["floor"]), **numbers)


if __name__ == "__main__":
    main()
