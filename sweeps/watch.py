"""What is known of a study while it runs: how each task stands, how far its trajectory has come, how fast.

Told of every change of a task by the driver; steps and losses are read from the store's own last lines.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sweeps.execute import Status
from sweeps.outcome import Outcome
from sweeps.plan import Plan, Task
from sweeps.store import Store
from sweeps.tree import Standing, standing

POLL_S = 0.4  # between looks at the lines of what runs; workers write them every half second
SPEED_S = 15.0  # a trajectory's speed is that of its last seconds
GAP_S = 5.0  # of rest, after which its speed is measured anew
PACE_S = 120.0  # what is left is expected to take as long as these last seconds say
FIRST_PACE_S = 5.0

_OVER = (Status.DONE, Status.FAILED, Status.BLOCKED, Status.DIVERGED, Status.LOST)


@dataclass
class Track:
    """One trajectory of this run: its tasks, and what the store's last line of it says."""

    tasks: list[Task] = field(default_factory=list)
    running: Task | None = None
    step: int = 0  # reached by the running task
    loss: float | None = None
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # (clock, tokens)

    @property
    def tokens_per_s(self) -> float | None:
        """None where nothing runs, and until two lines were seen."""
        return _slope(self.seen) if self.running else None

    @property
    def running_steps(self) -> int:
        return self.step - self.running.start if self.running else 0


class Watch:
    """One run of a plan. Seconds are those of `clock`."""

    def __init__(self, plan: Plan, store: Store, clock: Callable[[], float] = time.monotonic):
        self.plan, self.store, self.clock = plan, store, clock
        self.begin_s, self.polled_s = clock(), float("-inf")
        self.status = dict.fromkeys(plan.tasks, Status.TODO)
        self.task_flops = {id: task.flops for id, task in plan.tasks.items()}
        self.tracks: dict[str, Track] = defaultdict(Track)
        for task in sorted(plan.tasks.values(), key=lambda task: task.step):
            self.tracks[task.trajectory.id].tasks.append(task)
        self.running: dict[str, Track] = {}
        self.standings = {id: self._standing(id) for id in plan.trajectories}
        for id in {id for id, _ in plan.diverged} - set(self.tracks):
            self.standings[id] = Standing.DIVERGED
        self.errors: dict[str, str] = {}  # the last line of each failed trajectory's traceback
        self.pace: deque[tuple[float, float]] = deque()  # (clock, FLOPs trained)

    def observe(self, task: Task, status: Status, outcome: Outcome | None) -> None:
        id = task.trajectory.id
        self.status[task.id] = status
        track = self.tracks[id]
        track.running, track.step = (task if status is Status.RUNNING else None), task.start
        if status is Status.RUNNING:
            self.running[id] = track
            if track.seen and self.clock() - track.seen[-1][0] > GAP_S:
                track.seen.clear()
        else:
            self.running.pop(id, None)
            self._read(track, id)
        self.standings[id] = self._standing(id)
        if status is Status.DONE:
            self.errors.pop(id, None)  # of an attempt before
        elif status is Status.FAILED or (outcome and outcome.error):
            lines = (outcome.error or "" if outcome else "").strip().splitlines()
            self.errors[id] = lines[-1] if lines else "unknown error"

    def poll(self) -> None:
        """Reads the last line of each running trajectory, not more often than it is written."""
        now = self.clock()
        if now - self.polled_s < POLL_S:
            return
        self.polled_s = now
        for id, track in self.running.items():
            tokens = self._read(track, id)
            if tokens is not None:
                _note(track.seen, now, tokens, SPEED_S)
        trained = self.flops()[0]
        if trained > 0:
            _note(self.pace, now, trained, PACE_S)

    def _read(self, track: Track, id: str) -> int | None:
        """Takes over step and loss; gives the tokens, or None if the line is not of the running task."""
        line, task = self.store.last_metric(id), track.running
        if line is None:
            return None
        track.loss = line["loss"]
        if task is None or task.rewind or not task.start < line["step"] <= task.step:
            return None
        track.step = line["step"]
        return line["tokens"]

    def _standing(self, id: str) -> Standing:
        tasks = self.tracks[id].tasks if id in self.tracks else []
        return standing(self.status[task.id] for task in tasks)

    # -- sums --------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[Status]:
        return Counter(self.status.values())

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.begin_s

    @property
    def tokens_per_s(self) -> float:
        return sum(track.tokens_per_s or 0.0 for track in self.running.values())

    def flops(self) -> tuple[float, float]:
        """Trained by this run, and still to be trained; what failed, or waits for what did, is neither."""
        done = left = 0.0
        for id, status in self.status.items():
            if status is Status.DONE:
                done += self.task_flops[id]
            elif status not in _OVER:
                left += self.task_flops[id]
        running = sum(
            track.running_steps * self.plan.trajectories[id].flops_per_step
            for id, track in self.running.items()
        )
        return done + running, left - running

    def eta_s(self) -> float | None:
        """None until the pace is known, and when nothing is left to train."""
        left, pace = self.flops()[1], _slope(self.pace)
        if left <= 0 or pace is None or self.pace[-1][0] - self.pace[0][0] < FIRST_PACE_S:
            return None
        return left / pace

    def steps(self, id: str) -> tuple[int, int]:
        """Steps of a trajectory trained by this run, and all that it trains."""
        if id not in self.tracks:
            return 0, 0
        track = self.tracks[id]
        done = sum(task.step - task.start for task in track.tasks if self.status[task.id] is Status.DONE)
        return done + track.running_steps, sum(task.step - task.start for task in track.tasks)


def _note(samples: deque, now: float, value: float, window_s: float) -> None:
    """Keeps what changed within the window, and at least two samples."""
    if not samples or samples[-1][1] != value:
        samples.append((now, value))
    while len(samples) > 2 and now - samples[0][0] > window_s:
        samples.popleft()


def _slope(samples: deque) -> float | None:
    if len(samples) < 2:
        return None
    (begin_s, first), (end_s, last) = samples[0], samples[-1]
    return (last - first) / (end_s - begin_s) if end_s > begin_s and last > first else None
