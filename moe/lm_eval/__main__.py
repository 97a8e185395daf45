"""`python -m moe.lm_eval STATE --tasks NAMES`, or `--export DIR` to write ours; see docs/benchmarks.md."""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe.checkpoint import CorruptState, Description, load_description, load_weights
from moe.data import Data, Questions, families_of, is_corpus, open_data
from moe.files import write_bytes
from moe.lm_eval.export import GROUP, export
from moe.plain import check


def main(argv: list[str] | None = None) -> int:
    """0, or 2 and one line for what a user can put right."""
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except (ValueError, CorruptState, OSError) as error:
        print(f"moe.lm_eval: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    state = Path(arguments.state)
    check(
        (arguments.tasks is None) != (arguments.export is None),
        "give either --tasks NAMES, to evaluate the state, or --export DIR, to write our own tasks",
    )
    described = load_description(state)
    data = _open(state, described, arguments.corpora)
    if arguments.export is not None:
        _export(arguments, described, data)
    else:
        _evaluate(arguments, state, described, data)


def _open(state: Path, described: Description, corpora: str | None) -> Data:
    """Corpora lie in the store: store/trajectories/NAME/states/STEP is four folders below it."""
    above = state.resolve().parents
    folder = Path(corpora) if corpora else above[min(3, len(above) - 1)] / "corpora"
    check(
        not is_corpus(described.data) or folder.is_dir(),
        f"corpora={folder} is not there, and this state was trained on a corpus; give --corpora DIR",
    )
    return open_data(described.data, str(folder))


def _export(arguments: argparse.Namespace, described: Description, data: Data) -> None:
    questions = Questions(
        num_items=arguments.items,
        families=families_of(described.data),
        context_length=arguments.context_length,
        continuation_length=arguments.continuation_length,
    )
    for family in export(data, questions, Path(arguments.export), seq_len=described.seq_len):
        print(f"{family.task}: {family.num_items} items")
        if family.num_left_out:
            print(f"  left out: {family.num_left_out} whose text does not come back as the same tokens")
        if family.num_long:
            print(
                f"  {family.num_long} are longer than the {described.seq_len} tokens of training; "
                "--max_length reads them whole"
            )
    print(f"evaluate them with: --tasks {GROUP} --include_path {arguments.export}")


def _evaluate(arguments: argparse.Namespace, state: Path, described: Description, data: Data) -> None:
    check(
        find_spec("lm_eval") is not None,
        "--tasks needs lm-evaluation-harness, which is not installed: pip install -e '.[lm_eval]'",
    )
    check(
        arguments.output is None or Path(arguments.output).parent.is_dir(),
        f"output={arguments.output} has no folder to be written in; make it first",
    )
    from moe.lm_eval.adapter import Adapter
    from moe.lm_eval.harness import run_tasks, tables
    from moe.model import MoETransformer

    _check_device(arguments.device)
    model = MoETransformer(described.model)
    model.load_state_dict(load_weights(state))
    max_length = arguments.max_length or described.seq_len
    results = run_tasks(
        Adapter(model, data, max_length=max_length, device=arguments.device),
        arguments.tasks.split(","),
        include_path=None if arguments.include_path is None else Path(arguments.include_path),
        limit=arguments.limit,
        num_fewshot=arguments.num_fewshot,
    )
    print(tables(results))
    if arguments.output is not None:
        results["state"] = {
            "name": f"{state.resolve().parents[1].name}@{state.name}",
            "max_length": max_length,
        }
        write_bytes(Path(arguments.output), _to_json(results))


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(
            f"device={device} cannot be used ({message}); choose cpu, or a device of this machine"
        ) from None


def _to_json(results: dict[str, Any]) -> bytes:
    from lm_eval.utils import handle_non_serializable

    return (json.dumps(results, indent=2, default=handle_non_serializable) + "\n").encode()


def _positive(text: str) -> int:
    if (number := int(text)) <= 0:
        raise ValueError
    return number


def _whole(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number


_whole.__name__ = "number from 0"
_positive.__name__ = "number above 0"  # argparse says: invalid number above 0 value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moe.lm_eval", description=__doc__)
    add = parser.add_argument
    add("state", help="a stored state: store/trajectories/NAME/states/step_00000400")
    add("--tasks", metavar="NAMES", help="of the harness, with commas between; patterns such as 'arc_*' work")
    add("--include_path", metavar="DIR", help="a folder with more tasks, such as an export")
    add("--limit", type=_positive, metavar="N", help="only the first N items of each task")
    add("--num_fewshot", type=_whole, metavar="N", help="examples before each item, unless its task says 0")
    add("--device", default="cpu", help="default: cpu")
    add("--max_length", type=_positive, metavar="N", help="tokens read at most; default: those of training")
    add("--output", metavar="FILE.json", help="where the harness's results are written")
    add("--corpora", metavar="DIR", help="prepared corpora; default: those of the state's store")
    add("--export", metavar="DIR", help="write the items of the state's data as tasks of the harness")
    add("--items", type=_positive, default=1000, metavar="N", help="of each family; default: 1000")
    add("--context_length", type=_positive, default=96, metavar="N", help="of a corpus; default: 96 tokens")
    add("--continuation_length", type=_positive, default=24, metavar="N", help="of a corpus; default: 24")
    return parser


if __name__ == "__main__":
    sys.exit(main())
