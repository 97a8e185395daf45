"""The tree of a plan's trajectories as a person sees it: what each is called, how it stands, and what is
folded where there is no room for all. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sweeps.execute import Status
from sweeps.trajectory import Kind, Trajectory

_PLURAL = {Kind.TRUNK: "trunks", Kind.SCRATCH: "scratches", Kind.BRANCH: "branches", Kind.ANNEAL: "anneals"}


class Standing(StrEnum):
    """How a trajectory stands; the first listed are the last to be folded."""

    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"  # another process writes it
    DIVERGED = "diverged"
    LOST = "lost"  # a state was corrupt; it is derived again
    TODO = "to do"
    BLOCKED = "blocked"
    DONE = "done"
    CACHED = "cached"


_RANK = {standing: place for place, standing in enumerate(Standing)}
_URGENT = (Standing.FAILED, Standing.RUNNING, Standing.WAITING)


def standing(statuses: Iterable[Status]) -> Standing:
    """How a trajectory stands whose tasks, a chain, stand so; CACHED if this run has none of it."""
    found = set(statuses)
    for status in (Status.FAILED, Status.RUNNING, Status.WAITING, Status.DIVERGED, Status.LOST):
        if status in found:
            return Standing(status.value)
    if Status.BLOCKED in found:
        return Standing.BLOCKED
    if Status.TODO in found:
        return Standing.TODO
    return Standing.DONE if found else Standing.CACHED


@dataclass(frozen=True, slots=True)
class Fold:
    """Trajectories that share one line."""

    kinds: Counter[Kind]
    standings: Counter[Standing]

    @property
    def count(self) -> int:
        return self.kinds.total()

    def __str__(self) -> str:
        kinds = ", ".join(
            f"{count} {kind.value if count == 1 else _PLURAL[kind]}"
            for kind in Kind
            if (count := self.kinds[kind])
        )
        counts = [(self.standings[each], each.value) for each in Standing if self.standings[each]]
        if len(counts) == 1:
            return f"{kinds} {counts[0][1]}"
        return f"{kinds}: " + ", ".join(f"{count} {word}" for count, word in counts)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the tree: a trajectory's id, or a fold; `guide` draws what it hangs from."""

    guide: str
    what: str | Fold


class Tree:
    """Trajectories under their parents, in the order of the steps they start from."""

    def __init__(self, trajectories: Iterable[Trajectory]):
        self.trajectories = {trajectory.id: trajectory for trajectory in trajectories}
        self.children: dict[str | None, list[str]] = defaultdict(list)
        for trajectory in self.trajectories.values():
            self.children[_parent(trajectory)].append(trajectory.id)
        self.labels: dict[str, str] = {}
        for ids in self.children.values():
            ids.sort(key=lambda id: _start(self.trajectories[id]))  # stable: else the plan's order
            self.labels |= _labels([self.trajectories[id] for id in ids])

    def lines(self, standings: Mapping[str, Standing], room: int) -> list[Line]:
        """At most `room` (at least 1) lines that account for every trajectory once, alone or in a fold.

        What runs or failed is shown before anything else. Each parent folds its own children, or, where even
        those lines are too many, one fold at the end holds all that is hidden.
        """
        ranked = sorted(self.trajectories, key=lambda id: _RANK[standings[id]])
        num_urgent = sum(standings[id] in _URGENT for id in ranked)
        for own_folds in (True, False):
            count = self._most(ranked, room, own_folds)
            if count >= num_urgent or not own_folds:
                visible = self._with_ancestors(ranked[:count])
                return list(self._walk(None, "", visible, standings, own_folds))
        raise AssertionError("the second way always fits")

    def _most(self, ranked: list[str], room: int, own_folds: bool) -> int:
        """The longest prefix of `ranked` whose lines fit; adding to it never takes fewer lines."""
        fits, beyond = 0, len(ranked) + 1
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            if self._num_lines(self._with_ancestors(ranked[:middle]), own_folds) <= room:
                fits = middle
            else:
                beyond = middle
        return fits

    def _num_lines(self, visible: set[str], own_folds: bool) -> int:
        if not own_folds:
            return len(visible) + (len(visible) < len(self.trajectories))
        shown = [None, *visible]
        folds = sum(any(child not in visible for child in self.children.get(id, ())) for id in shown)
        return len(visible) + folds

    def _with_ancestors(self, ids: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for each in ids:
            id: str | None = each
            while id is not None and id not in found:
                found.add(id)
                id = _parent(self.trajectories[id])
        return found

    def _walk(
        self,
        parent: str | None,
        guide: str,
        visible: set[str],
        standings: Mapping[str, Standing],
        own_folds: bool,
    ) -> Iterator[Line]:
        children = self.children.get(parent, [])
        shown: list[str | Fold] = [id for id in children if id in visible]
        hidden = [below for id in children if id not in visible for below in self._subtree(id)]
        if own_folds and len(hidden) == 1:  # its own line takes no more room than a fold
            shown = [id for id in children if id in visible or id == hidden[0]]
        elif own_folds and hidden:
            shown.append(self._fold(hidden, standings))
        elif parent is None and not own_folds and len(visible) < len(self.trajectories):
            shown.append(self._fold([id for id in self.trajectories if id not in visible], standings))
        for place, what in enumerate(shown):
            last = place == len(shown) - 1
            yield Line("" if parent is None else guide + ("└ " if last else "├ "), what)
            if isinstance(what, str):
                below = "" if parent is None else guide + ("  " if last else "│ ")
                yield from self._walk(what, below, visible, standings, own_folds)

    def _subtree(self, id: str) -> Iterator[str]:
        yield id
        for child in self.children.get(id, ()):
            yield from self._subtree(child)

    def _fold(self, ids: list[str], standings: Mapping[str, Standing]) -> Fold:
        kinds = Counter(self.trajectories[id].kind for id in ids)
        return Fold(kinds, Counter(standings[id] for id in ids))


def _parent(trajectory: Trajectory) -> str | None:
    return trajectory.parent.trajectory.id if trajectory.parent else None


def _start(trajectory: Trajectory) -> int:
    return trajectory.parent.step if trajectory.parent else 0


def _labels(siblings: list[Trajectory]) -> dict[str, str]:
    """A name for each; where several would have one name, the settings that tell them apart follow."""
    grown = [trajectory.operator for trajectory in siblings if trajectory.operator.grows]
    methods, widths = {each.method for each in grown}, {each.width_method for each in grown}
    short = len(widths) == 1 < len(methods) and all(each.deepens for each in grown)
    alike: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in siblings:
        alike[_name(trajectory, short)].append(trajectory)
    return {id: f"{name} {words}".strip() for name, group in alike.items() for id, words in _told(group)}


def _told(group: list[Trajectory]) -> Iterator[tuple[str, str]]:
    """The settings that tell trajectories of one name apart; what some lack only if nothing else tells."""
    settings = [dict(_flat(trajectory.identity)) for trajectory in group]
    keys = dict.fromkeys(key for each in settings for key in each)
    values = {key: {str(each[key]) for each in settings if each.get(key) is not None} for key in keys}
    telling = [key for key in keys if len(values[key]) > 1]
    if len({tuple(str(each.get(key)) for key in telling) for each in settings}) < len(group):
        telling = [key for key in keys if len({str(each.get(key)) for each in settings}) > 1]
    for trajectory, each in zip(group, settings, strict=True):
        words = [f"{key.split('.')[-1]}={_text(each[key])}" for key in telling if each.get(key) is not None]
        yield trajectory.id, " ".join(words)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(trajectory: Trajectory, short: bool) -> str:
    """`short` leaves out how a branch grows in width."""
    if trajectory.parent is None:
        return f"{trajectory.kind.value} seed {trajectory.seed}"
    how, operator = trajectory.kind.value, trajectory.operator
    if trajectory.kind is Kind.BRANCH:
        how = "sham" if not operator.grows else operator.method.value if short else operator.label
    return f"@{trajectory.parent.step} {how}"


def _flat(identity: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in identity.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
