"""run_study: parse, check, plan, print, execute, summarise. All three ways in (one cell, a grid, a sweeper
that asks batch by batch) end here."""

import contextlib
import gc
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from moe.data import open_data
from sweeps.cell import Cell, data_json, resolve
from sweeps.config import LaunchConfig, PlanMode, SweepConfig, TrackingKind, parse_sweep
from sweeps.cost import Prediction, check_limit, predict
from sweeps.execute import Execution, Executor, Status, execute
from sweeps.executors import Executors
from sweeps.fusion import described
from sweeps.machine import Place, place_of
from sweeps.plan import Plan, make_plan
from sweeps.preparation import prepare_corpora, prepare_sources
from sweeps.progress import View
from sweeps.provenance import git_commit, versions
from sweeps.row import row, unique_tokens
from sweeps.speed import known_speeds, known_start_s, shape_of
from sweeps.store import Store

REPLANS = 5  # rounds in which corrupt states are set aside and derived again


class Refused(Exception):
    """A request that was turned down before anything was written: one line for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """The outcome of one requested cell; `final_acc` only if it is done, `message` only if it is not."""

    cell_id: str
    status: str
    final_acc: float | None
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """`cells` in the order they were requested; `exit_code` is 0, 1 (failed) or 130 (interrupted)."""

    cells: list[CellResult]
    exit_code: int
    planned_only: bool = False


def run_study(
    mappings: list[dict[str, Any]], executors: Executors | None = None, *, whole_grid: bool = True
) -> StudyResult:
    """Runs the cells of resolved configurations; what is stored is not run again.

    Raises Refused, with nothing written, when any of them is wrong; also when all of a whole grid's cells
    turn out to be one (a sweeper that asks batch by batch may repeat itself).
    """
    try:
        with warnings.catch_warnings(record=True) as caught:  # of the corpus, say: bytes that are not text
            warnings.simplefilter("always", UserWarning)
            config, store, plan = plan_study(mappings)
        if whole_grid:
            _check_collapse(plan)
    except ValueError as error:
        raise Refused(str(error)) from error
    try:
        place = place_of(config.launch)
        prediction = _predict(plan, store, config.launch, place)
    except ValueError as error:
        raise Refused(str(error)) from error
    study = _Study(config, plan, store, prediction, executors)
    study.view.show_warnings([str(warning.message) for warning in caught])
    study.view.show_plan(plan, prediction, described(plan, config.launch.fuse, place.gpus_per_run > 0))
    study.view.show_warnings(
        [f"{path} is damaged; it is written anew" for path in store.damaged(config.study_name)]
    )
    study.view.show_warnings(_drift(config.study_name, plan, store))
    study.view.show_warnings(_replaced(config.study_name, plan, store))
    try:
        check_limit(config.limit, plan, prediction)  # the plan stands above: what is too much can be seen
    except ValueError as error:
        raise Refused(str(error)) from error
    if config.plan is PlanMode.ONLY:
        return StudyResult(cells=[], exit_code=0, planned_only=True)
    try:
        with _terminable():
            prepare_corpora(plan, store, study.view.console)
    except ValueError as error:
        raise Refused(str(error)) from error
    except KeyboardInterrupt:  # what was half prepared is gone
        return StudyResult(cells=[], exit_code=130)
    return study.run()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt here: where no worker has to save, Ctrl-C and SIGTERM end alike."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan_study(mappings: list[dict[str, Any]]) -> tuple[SweepConfig, Store, Plan]:
    """Checks everything and plans it, reading the store and writing nothing; ValueError if a cell is wrong.

    Gives the first cell's configuration, whose `launch` and `tracking` all cells share.
    """
    collecting = gc.isenabled()
    gc.disable()  # a large plan is all live objects: looking for dead ones among them costs a fifth
    try:
        configs = [parse_sweep(mapping) for mapping in mappings]
        _check_together(configs)
        store = Store(configs[0].launch.store)
        plan = make_plan([resolve(config) for config in configs], store)
        return configs[0], store, plan
    finally:
        if collecting:
            gc.enable()


class _Study:
    def __init__(
        self,
        config: SweepConfig,
        plan: Plan,
        store: Store,
        prediction: Prediction,
        executors: Executors | None,
    ):
        self.config, self.plan, self.store, self.prediction = config, plan, store, prediction
        self.own_executors = executors is None
        self.executors = executors or Executors()
        self.view = View(config.study_name, store)
        self.begin = time.time()
        self.start_s = 0.0  # of this, to make the executor and start its workers
        self.execution = Execution(status=dict.fromkeys(plan.tasks, Status.TODO))
        self.cached = {cell.id for cell in plan.cells.values() if self._status(cell) == "done"}
        self.before = plan  # the plan as it was printed; `plan` is made anew when a state was lost

    def run(self) -> StudyResult:
        try:
            with self._stop_on_signal() as is_stopping:
                executor = self._executor(is_stopping)
                try:
                    self._execute(executor, is_stopping)
                finally:
                    is_written = self._write_summary()
                stopped = is_stopping()
        finally:
            if self.own_executors:
                self.executors.close()
        return self._finish(stopped, is_written)

    def _executor(self, is_stopping: Callable[[], bool]) -> Executor | None:
        """The executor, if there is work for one, its workers at their places: the last place to refuse.
        Until then nothing is written but the folders of an empty store."""
        try:
            with self._starting():
                executor = self.executors.get(self.config.launch) if self.plan.tasks else None
                self.store.prepare()
                if executor is not None and not is_stopping():
                    self.executors.start()
            self.store.add(*self.plan.trajectories.values())
            prepare_sources(self.plan, self.store)
            self._write()
        except ValueError as error:
            raise Refused(str(error)) from error
        except OSError as error:
            raise Refused(f"launch.store={self.store.root} cannot be written: {error}") from error
        return executor

    def _execute(self, executor: Executor | None, is_stopping: Callable[[], bool]) -> None:
        if executor is None:
            return
        for _ in range(REPLANS):
            with self.view.running(self.plan) as observe:
                execution = execute(
                    self.plan,
                    executor,
                    max_attempts=self.config.launch.max_attempts,
                    stopping=is_stopping,
                    observe=observe,
                    fuse=self.config.launch.fuse,
                )
            execution.spent_flops += self.execution.spent_flops
            execution.work_s += self.execution.work_s
            execution.warnings[:0] = self.execution.warnings
            self.execution = execution
            if Status.LOST not in execution.status.values() or execution.stopped:
                return
            self.plan = make_plan(self.plan.requested, self.store)
            try:
                prepare_sources(self.plan, self.store)
            except ValueError as error:
                raise Refused(str(error)) from error

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.start_s += time.perf_counter() - begin

    @contextlib.contextmanager
    def _stop_on_signal(self) -> Iterator[Callable[[], bool]]:
        """Ctrl-C and SIGTERM ask workers to save and return; a second Ctrl-C does not wait for them."""
        asked: list[int] = []

        def ask(signum: int, frame: Any) -> None:
            asked.append(signum)
            self.executors.stop()
            self.view.show_stopping()
            if len(asked) > 1:
                raise KeyboardInterrupt

        before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield lambda: bool(asked)
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    # -- what is written ---------------------------------------------------------------------------------

    def _write(self, summary: bool = False) -> None:
        requested = {cell.id for cell in self.plan.requested}
        rows = []
        for cell in self.plan.cells.values():
            facts = row(cell, cell.id in requested)
            corpus = _corpus_tokens(data_json(cell.config.data), self.store.corpora)
            facts["unique_tokens"] = unique_tokens(facts["path"], corpus)
            facts["epochs"] = facts["tokens"] / corpus if corpus else None
            facts["status"] = self._status(cell)
            rows.append(facts)
        name = self.config.study_name
        self.store.write_study(name, cells={"study": name, "cells": rows}, plan=self._plan_summary())
        if summary:
            self.store.write_study(name, summary=self._summary(rows))

    def _write_summary(self) -> bool:
        """Whether the disk took it. What was trained is stored, whatever becomes of the account of it."""
        try:
            self._write(summary=True)
            return True
        except OSError as error:
            self.view.show_warnings([f"the study's files are those from before this run: {error}"])
            return False

    def _plan_summary(self) -> dict[str, Any]:
        return {**self.before.summary(), "prediction": self.prediction.summary()}

    def _summary(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Counts are of cells, controls included; `runs` holds every run of the study, this one last."""
        counts = Counter(facts["status"] for facts in rows)
        wall_s = time.time() - self.begin
        run = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.begin)),
            "done": counts["done"] - len(self.cached),
            "cached": len(self.cached),
            "failed": counts["failed"],
            "blocked": counts["blocked"],
            "diverged": counts["diverged"],
            "spent_flops": self.execution.spent_flops,
            "planned_flops": self._planned_flops(),
            "work_s": self.execution.work_s,
            "wall_s": wall_s,
            "predicted_s": self.prediction.wall_s,
            "start_s": self.start_s,
            "executor": self.config.launch.executor.value,
            "slots": self.prediction.slots,
        }
        earlier = self.store.earlier(self.config.study_name)["summary"]
        return {
            **run,
            "runs": [*(earlier["runs"] if earlier else []), run],
            "git_commit": git_commit(),
            "versions": versions(),
            "warnings": self.execution.warnings,
        }

    def _planned_flops(self) -> float:
        return self.before.flops_todo + self.before.flops_rewind

    def _status(self, cell: Cell) -> str:
        missing = [
            address.key
            for role, address in cell.states().items()
            if (address.step, cell.suite_at(role).eval_id) not in self.store.evaluated(address.trajectory.id)
        ]
        if not missing:
            return "done"
        if any(key in self.plan.diverged for key in missing):
            return "diverged"
        found = {self.execution.status.get(f"{id}@{step}", Status.TODO) for id, step in missing}
        for status in (Status.FAILED, Status.DIVERGED, Status.BLOCKED):
            if status in found:
                return status.value
        return "todo"

    # -- the end -----------------------------------------------------------------------------------------

    def _track(self) -> None:
        if self.config.tracking.name is not TrackingKind.WANDB:
            return
        from sweeps.tracking import publish

        try:
            publish(self.store, self.config.study_name, self.config.tracking)
        except Exception as error:  # the results are stored; a mirror may break in any way it likes
            self.view.show_warnings([f"Weights & Biases: {error}; run the same command to publish again"])

    def _finish(self, stopping: bool, is_written: bool) -> StudyResult:
        results = [self._result(cell) for cell in self.plan.requested]
        statuses = Counter(self._status(cell) for cell in self.plan.cells.values())
        by_id = {result.cell_id: result for result in results}
        self.view.show_end(self.plan, self.execution, statuses, by_id, self._planned_flops(), stopping)
        if self.plan.tasks and not stopping:
            self.view.show_cost(self.prediction, time.time() - self.begin)
        self._track()
        failed = len(self.plan.cells) - statuses["done"] - statuses["diverged"]
        return StudyResult(cells=results, exit_code=130 if stopping else 1 if failed or not is_written else 0)

    def _result(self, cell: Cell) -> CellResult:
        status = self._status(cell)
        if status == "done":
            return CellResult(cell_id=cell.id, status=status, final_acc=final_acc(self.store, cell))
        errors = [self.execution.errors.get(str(a), "") for a in cell.states().values()]
        message = next(filter(None, errors), f"cell {cell.id} is {status}")
        return CellResult(cell_id=cell.id, status=status, final_acc=None, message=message)


@lru_cache(maxsize=16)
def _corpus_tokens(identity: str, corpora: str) -> int | None:
    return open_data(json.loads(identity), corpora).unique_tokens


def final_acc(store: Store, cell: Cell) -> float:
    trajectory_id, step = cell.leaf.key
    lines = store.evals(trajectory_id)
    return next(line["acc"] for line in lines if (line["step"], line["eval_id"]) == (step, cell.eval_id))


def _check_together(configs: list[SweepConfig]) -> None:
    """One study has one name, one store, one way to run and one set of controls."""
    first = configs[0]
    for config in configs[1:]:
        for section in ("study_name", "controls", "launch", "tracking", "plan"):
            a, b = getattr(first, section), getattr(config, section)
            if a != b:
                raise ValueError(f"{section} differs between cells ({a} and {b}); it cannot be swept")
        for name in ("max_flops", "max_hours"):
            a, b = getattr(first.limit, name), getattr(config.limit, name)
            if a != b:
                raise ValueError(f"budget.{name} differs between cells ({a} and {b}); it cannot be swept")


def _check_collapse(plan: Plan) -> None:
    distinct = {cell.id for cell in plan.requested}
    if len(plan.requested) > 1 and len(distinct) == 1:
        raise ValueError(
            f"the {len(plan.requested)} requested cells are all one: nothing that was swept changes what is "
            "trained or measured; sweep a field that does, or ask for one cell without -m"
        )


def _drift(study_name: str, plan: Plan, store: Store) -> list[str]:
    """Source is no part of an id (a VERSION is raised when numerics change): say so when it has changed."""
    summary = store.earlier(study_name)["summary"]
    made, now = (summary or {}).get("git_commit"), git_commit()
    if not plan.cached_tasks or made is None or now is None or made == now:
        return []
    return [f"stored results of {study_name} were made by commit {made}; the source is now {now}"]


def _replaced(study_name: str, plan: Plan, store: Store) -> list[str]:
    """A study's list of cells is that of its last run: say so when it loses some."""
    cells = store.earlier(study_name)["cells"]
    lost = [row for row in (cells or {"cells": []})["cells"] if row["cell_id"] not in plan.cells]
    if not lost:
        return []
    return [
        f"study {study_name} listed {len(lost)} other cells; they stay stored, but its report will show only "
        "those of this run: give it a name of its own with study_name=NAME to keep both"
    ]


def _predict(plan: Plan, store: Store, launch: LaunchConfig, place: Place) -> Prediction:
    """What the plan will cost here, from what is known of this machine's speed."""
    shapes = {shape_of(task.trajectory) for task in plan.tasks.values()}
    return predict(
        plan,
        known_speeds(shapes, store, launch, place) if shapes else {},
        slots=place.slots,
        gpus_per_run=place.gpus_per_run,
        start_s=known_start_s(store, launch, place),
        fuse=launch.fuse,
    )
