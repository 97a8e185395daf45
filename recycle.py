"""Grows a Hugging Face MoE checkpoint: `python recycle.py source=DIR target=DIR growth=orthogonal`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress

from moe.plain import parse
from moe.recycle.interchange import export_lines
from moe.recycle.lineage import lines, read_lineage
from moe.recycle.plan_text import plan_lines
from moe.recycle.run import Grown, grow, planned
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
        case Task.EXPORT:
            print(export_lines(config.source, config.target))
        case Task.GROW if config.plan == "only":
            print("\n".join(plan_lines(planned(config))))
        case Task.GROW:
            _grow(config)


def _grow(config: RecycleConfig) -> None:
    console = Console(stderr=True)
    print("\n".join(plan_lines(planned(config))))
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
