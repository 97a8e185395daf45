"""Grows a Hugging Face MoE checkpoint: `python recycle.py source=DIR target=DIR growth=orthogonal`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress

from moe.plain import check, parse
from moe.recycle.checkpoint import open_checkpoint
from moe.recycle.interchange import export_lines
from moe.recycle.lineage import lines, read_lineage
from moe.recycle.norms import COLUMNS, norm_rows, seams_of
from moe.recycle.plan_text import plan_lines
from moe.recycle.prediction import measured_speeds, predicted_seconds
from moe.recycle.run import Grown, grow, planned, within
from moe.recycle.settings import RecycleConfig, Task, num_bytes
from moe.recycle.verify import verdict_lines, verify


@hydra.main(config_path="conf", config_name="recycle/config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Does what `do` says; refuses with one line and exit code 2, is interrupted with 130."""
    try:
        config = parse(RecycleConfig, OmegaConf.to_container(cfg, resolve=True))
        recycle(config)
    except (ValueError, OSError, OmegaConfBaseException) as error:
        print(f"recycle.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last whole file", file=sys.stderr)
        sys.exit(130)


def recycle(config: RecycleConfig) -> None:
    match config.do:
        case Task.LINEAGE:
            print("\n".join(lines(read_lineage(Path(str(config.target))))))
        case Task.VERIFY:
            _verify(config)
        case Task.NORMS:
            _norms(config)
        case Task.EXPORT:
            print(export_lines(config.source, config.target))
        case Task.GROW if config.plan == "only":
            print("\n".join(_plan_lines(config)))
        case Task.GROW:
            _grow(config)


def _plan_lines(config: RecycleConfig) -> list[str]:
    plan, threads = planned(config), config.num_threads
    return plan_lines(plan, predicted_seconds(plan, measured_speeds(), threads), threads)


def _grow(config: RecycleConfig) -> None:
    console = Console(stderr=True)
    print("\n".join(_plan_lines(config)))
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing")
        grown = grow(config, lambda done, total: bar.update(task, completed=done, total=total))
    print("\n".join(_outcome(grown)))
    if config.verify and grown.written is not None:
        _verify(config)


def _verify(config: RecycleConfig) -> None:
    """Prints what holds; exits with 1 where something does not."""
    source, target = Path(str(config.source)), Path(str(config.target))
    with Console(stderr=True).status("verifying") as status:
        verdict = verify(
            source,
            target,
            memory_limit=num_bytes("memory_limit", config.memory_limit),
            progress=lambda what: status.update(f"verifying: {what}"),
        )
    print("\n".join(verdict_lines(verdict)))
    if not verdict.holds:
        sys.exit(1)


def _norms(config: RecycleConfig) -> None:
    """Writes norms.csv, norms.png and norms.pdf."""
    import pandas as pd  # of a drawing alone: growing has to do with little memory

    from analysis.figures.checkpoint_norms import checkpoint_norms
    from analysis.figures.style import save, themed

    source = open_checkpoint(str(config.source))
    folder = Path(config.target or Path("norms") / source.directory.absolute().name)
    check(
        not within(folder, source.directory),
        f"target={folder} lies within source={source.directory}; the source is never written to",
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        num_layers = int(source.config["num_hidden_layers"])
        rows = [row for own in bar.track(norm_rows(source), num_layers, description="reading") for row in own]
    with themed():
        save(*checkpoint_norms(pd.DataFrame(rows, columns=list(COLUMNS)), seams_of(source)), folder / "norms")
    print(f"{folder}: norms.csv, norms.png, norms.pdf")


def _outcome(grown: Grown) -> list[str]:
    if grown.written is None:
        return [f"{grown.target} is this growth already; nothing was written"]
    written = grown.written
    speed = written.num_bytes / 1e6 / max(grown.seconds, 1e-9)
    return [
        f"{grown.target}: {written.num_shards} files, {written.num_bytes / 1e9:.3g} GB in "
        f"{grown.seconds:.1f} s ({speed:.0f} MB/s); at most {written.peak_bytes / 2**20:.0f} MiB of memory"
    ]


if __name__ == "__main__":
    main()
