"""A correlation report for reading in a terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 110  # columns where there is no terminal


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `table_report` gives: notes, a column per way of taking the rows, the base."""
    found = Console(highlight=False)
    console = console or (found if found.is_terminal else Console(highlight=False, width=WIDTH))

    def say(text: str) -> None:
        console.print(text, markup=False)

    x = f"log10 {report['x']}" if report["log_x"] else report["x"]
    used = f"{_count(report['n_cells'], 'row')} of {report['n_rows']}"
    say(f"{report['y']} against {x}: {used}, {_count(report['n_trunks'], 'trunk')}")
    for note in report["notes"]:
        say(f"• {note}")
    say("")
    sets = dict(report["sets"]) | ({"net, without scratch": report["net"]} if report["net"] else {})
    console.print(_table(sets))
    units = {part["theil_sen"]["unit"]: None for part in report["sets"].values() if part["theil_sen"]}
    for unit in units:
        say(f"Slopes in {unit}. A random rise: as many points, exponential steps, against their index.")
    for name, part in sets.items():
        if part["refused"]:
            say(f"{name}: {part['refused']}")
    say("")
    for reason in _reasons(sets):
        say(reason)
    for given in report["given"]:
        _show_given(given, say)


def _table(sets: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in sets:
        table.add_column(name, justify="right")
    for label, cell in _ROWS:
        values = [cell(part) for part in sets.values()]
        if any(value != "–" for value in values):
            table.add_row(label, *values)
    return table


def _null(part: dict[str, Any]) -> str:
    null = part["monotone_null"]
    return f"{null['median']:.2f} ({null['low']:.2f} to {null['high']:.2f})" if null else "–"


def _share_above(part: dict[str, Any]) -> str:
    null = part["monotone_null"]
    return "–" if not null or null["share_above"] is None else f"{100 * null['share_above']:.0f} %"


def _of(*path: str) -> Callable[[dict[str, Any]], str]:
    """A number, or an interval, at a path of keys."""

    def found(part: dict[str, Any]) -> str:
        value: Any = part
        for name in path:
            value = value[name] if value else None
        if isinstance(value, list):
            return f"{_number(value[0])} to {_number(value[1])}"
        return _number(value)

    return found


def _coefficient(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda part: "–" if part[name] is None else f"{part[name]:.2f}".replace("-", "−")


_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("cells (trunks)", lambda part: f"{part['n_cells']} ({part['n_trunks']})"),
    ("null: r of a random rise", _null),
    ("Pearson", _coefficient("pearson")),
    ("  random rises at or above", _share_above),
    ("  95 %, t over trunks’ own r", _of("interval", "pearson")),
    ("  95 %, bootstrap of trunks", _of("cluster_bootstrap", "pearson")),
    ("Pearson, log x", _coefficient("pearson_log_x")),
    ("Spearman", _coefficient("spearman")),
    ("Kendall", _coefficient("kendall")),
    ("Theil–Sen slope", _of("theil_sen", "slope")),
    ("  95 %, t over trunks’ slopes", _of("interval", "theil_sen_slope")),
    ("  p", _of("interval", "p", "theil_sen_slope")),
    ("  least slope to be seen", _of("interval", "minimum_detectable", "theil_sen_slope")),
    ("slope within, bootstrap", _of("cluster_bootstrap", "slope_within")),
    ("slope, mixed model", _of("mixed_model", "slope")),
    ("  95 %", _of("mixed_model", "slope_interval")),
    ("mean", _of("mean")),
    ("  95 %, t over trunks", _of("interval", "mean")),
    ("residuals, lag-1", _coefficient("lag1")),
    ("residuals, Durbin–Watson", _coefficient("durbin_watson")),
    ("least rise, evaluation alone", _of("minimum_detectable", "over_the_range")),
)


def _reasons(sets: dict[str, dict[str, Any]]) -> list[str]:
    """Why there is no interval, each reason once, of the sets that have coefficients."""
    out: dict[str, None] = {}
    for part in sets.values():
        if not part["refused"]:
            names = (
                ("interval", "mixed_model", "cluster_bootstrap") if part["n_trunks"] > 1 else ("interval",)
            )
            out |= {part[f"no_{name}_because"]: None for name in names if part[f"no_{name}_because"]}
    return list(out)


def _show_given(given: dict[str, Any], say: Callable[[str], None]) -> None:
    say("")
    if difference := given["difference"]:
        shown = f"{difference['pearson']:.2f}".replace("-", "−")
        say(f"y − {given['given']} correlates {shown} with x. {difference['why']}")
    part = given["partial"]
    if part["refused"]:
        say(f"Partial correlation given {given['given']}: {part['refused']}")
        return
    base, raw = (
        f"{given['given']} (reliability {part['reliability']:.2f} within trunks)",
        _of("uncorrected")(part),
    )
    interval = _of("direct_interval")(part)
    say(f"Given {base}: {_of('direct')(part)} (95 % {interval}) {part['direct_unit']};")
    partial = f"{_of('partial')(part)} (95 % {_of('partial_interval')(part)})"
    say(f"partial correlation {partial}; with the noise left in it would read {raw}.")
    if part["no_partial_because"]:
        say(part["no_partial_because"])


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'s' if n != 1 else ''}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")
