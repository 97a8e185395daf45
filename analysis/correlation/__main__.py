"""`python -m analysis.correlation FILE.csv --x sunk_flops --y end_acc`: see docs/statistics.md.

Exit codes: 0, 2 if the question is refused (one line).
"""

import argparse
import json
import sys
from pathlib import Path

from analysis.correlation.observations import Question, read_table
from analysis.correlation.screen import show
from analysis.correlation.table_report import table_report


def main(arguments: list[str] | None = None) -> int:
    """Prints the report of one table, writes it as JSON on demand, and gives the exit code."""
    given = _parser().parse_args(arguments)
    try:
        question = Question(
            x=given.x,
            y=given.y,
            given=tuple(dict.fromkeys(given.given)),
            given_se=_error("--given-se", given.given_se),
            y_se=_error("--y-se", given.y_se),
            cluster=given.cluster,
            phase=given.phase,
            log_x=given.log_x,
        )
        report = {"file": str(given.file)} | table_report(read_table(given.file), question)
        if given.json:
            Path(given.json).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    show(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.correlation", description="How y goes with x in any CSV table, over trunks."
    )
    parser.add_argument("file", metavar="FILE.csv", help="a table; lines that begin with # are comments")
    parser.add_argument("--x", required=True, metavar="COLUMN", help="for example sunk_flops")
    parser.add_argument("--y", required=True, metavar="COLUMN", help="for example final_acc")
    parser.add_argument(
        "--y-se", metavar="COLUMN|NUMBER", help="evaluation error of y (column <y>_se, or none)"
    )
    parser.add_argument(
        "--given", action="append", default=[], metavar="COLUMN", help="the base's value; may be repeated"
    )
    parser.add_argument(
        "--given-se", metavar="COLUMN|NUMBER", help="evaluation error of --given, in its unit"
    )
    parser.add_argument("--cluster", metavar="COLUMN", help="names the trunk of a row (default: one trunk)")
    parser.add_argument(
        "--phase", metavar="COLUMN", help="learning-rate phase of a row (column phase or start_phase)"
    )
    parser.add_argument("--log-x", action="store_true", help="take the logarithm of x (base 10)")
    parser.add_argument("--json", metavar="OUT", help="write the whole report there too")
    return parser


def _error(option: str, text: str | None) -> str | float | None:
    """A number where the text is one, else the name of a column."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return text
    if not 0 <= value < float("inf"):
        raise ValueError(f"{option}={text} must be a standard error of 0 or more, or a column")
    return value


if __name__ == "__main__":
    sys.exit(main())
