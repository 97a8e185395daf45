"""Is a grown checkpoint what it says: its structure, the bytes of its copies, its noise, its function."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from moe.operator import Exactness, Operator
from moe.plain import check, parse
from moe.recycle.block import changed
from moe.recycle.checkpoint import DTYPES, Checkpoint, Reader, open_checkpoint
from moe.recycle.layerwise import Layerwise
from moe.recycle.lineage import read_lineage
from moe.recycle.plan import Piece, Plan, Target, make_plan
from moe.recycle.structure import not_as_planned, not_as_transformers
from moe.recycle.writer import memory_bytes, peak_bytes

_AT_ONCE = 8 << 20  # bytes compared
_NOISY_BLOCKS = 64  # recomputed
_ROUNDING = 1e-4  # of the largest logit: what a growth that is exact may differ by
_BATCH, _LENGTH = 4, 64
_WARM_BYTES = 48 << 20  # what the first layer loads for good: code, threads' own stores
_TRANSFORMERS_BYTES = 192 << 20  # of its code, measured with 5.24


@dataclass(frozen=True, kw_only=True)
class Function:
    """Source against target on random tokens.

    `agreement` is the share of the source's routed experts that the target chose, any copy counting; None for
    a growth in depth, whose layers have no partner.
    """

    tokens: int
    max_change: float
    largest_logit: float
    divergence: float  # KL(source ‖ target), nats a token
    agreement: float | None


@dataclass(kw_only=True)
class Verdict:
    """What was looked at, and what is wrong; `skipped` says what was not looked at and why."""

    exactness: Exactness
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    tensors: int = 0
    fits_class: bool = False  # of transformers
    compared_bytes: int = 0
    noisy_blocks: int = 0
    noise_ratio: float | None = None  # mean of what was added, in units of α·σ
    function: Function | None = None
    peak_bytes: int = 0  # the most memory that this process ever held

    @property
    def holds(self) -> bool:
        return not self.problems


def verify(
    source: Path,
    target: Path,
    *,
    memory_limit: int,
    tokens_seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> Verdict:
    """Checks `target` against the growth of `source` that its growth.json records; writes neither.

    ValueError if it records none, or not of `source`.
    """
    grown, last = open_checkpoint(target, "target"), read_lineage(target)["growths"][-1]
    operator = parse(Operator, last["operator"], "operator")
    plan = make_plan(open_checkpoint(source), operator)
    check(
        last["source"] == plan.source.directory.name,
        f"target={target} was grown from {last['source']}, not from source={source}",
    )
    verdict, reader = Verdict(exactness=plan.exactness, tensors=len(plan.targets)), Reader()
    progress("structure")
    verdict.problems += not_as_planned(plan, grown)
    if not verdict.problems:
        progress("copies and noise")
        try:
            _contents(plan, grown, reader, int(last.get("seed") or operator.seed or 0), verdict)
        finally:
            reader.close()
    if not verdict.problems and _may_use_transformers(memory_limit, verdict):
        progress("structure and function in transformers")
        verdict.problems += not_as_transformers(grown)
        verdict.fits_class = not verdict.problems
        if verdict.fits_class:
            _function(plan, grown, memory_limit, tokens_seed, verdict)
    verdict.peak_bytes = peak_bytes()
    return verdict


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict in words, one line for each thing that was looked at."""
    of_class = ", names and shapes those of transformers' class" if verdict.fits_class else ""
    out = [f"structure: {verdict.tensors} tensors as planned{of_class}"]
    out.append(f"copies: {verdict.compared_bytes / 1e9:.3g} GB equal to their source, byte by byte")
    if verdict.noisy_blocks:
        ratio = "" if verdict.noise_ratio is None else f"; noise is {verdict.noise_ratio:.3f} of α·σ"
        out.append(f"changed: {verdict.noisy_blocks} blocks drawn again, equal{ratio}")
    if verdict.function is not None:
        f, promised = verdict.function, verdict.exactness.value
        agreement = "" if f.agreement is None else f"; routers agree on {100 * f.agreement:.1f} %"
        out.append(
            f"function, {f.tokens} random tokens: logits change by at most {f.max_change:.3g} (the largest "
            f"is {f.largest_logit:.3g}), KL {f.divergence:.3g} nats{agreement}; promised: {promised}"
        )
    out += [f"not looked at: {what}" for what in verdict.skipped]
    out.append(f"memory: at most {verdict.peak_bytes >> 20} MiB")
    out += [f"WRONG: {what}" for what in verdict.problems]
    return out if verdict.holds else out[-len(verdict.problems) :]


# -- bytes -----------------------------------------------------------------------------------------------


def _contents(plan: Plan, grown: Checkpoint, reader: Reader, seed: int, verdict: Verdict) -> None:
    """Every copy against its source; of what was changed some blocks, drawn again."""
    changes = [piece for target in plan.targets for piece in target.pieces if piece.change is not None]
    stride, nth, ratios = max(1, len(changes) // _NOISY_BLOCKS), 0, []
    for target in plan.targets:
        place = 0
        for piece in target.pieces:
            if piece.change is None:
                if not _equal(plan, grown, reader, target, piece, place):
                    verdict.problems.append(f"{target.name} is not the copy that it should be")
                    return
                verdict.compared_bytes += piece.num_bytes
            else:
                nth += 1
                if nth % stride == 0 and not _drawn_again(grown, reader, target, piece, place, seed, ratios):
                    verdict.problems.append(f"{target.name} is not what its seed draws")
                    return
                verdict.noisy_blocks += nth % stride == 0
            place += piece.num_bytes
    verdict.noise_ratio = float(torch.tensor(ratios).mean()) if ratios else None


def _equal(plan: Plan, grown: Checkpoint, reader: Reader, target: Target, piece: Piece, place: int) -> bool:
    source, stored = piece.source, grown.tensors[target.name]
    row = (source.end - source.begin) // (source.shape[0] if piece.index is not None else 1)
    first = (piece.index or 0) * row
    for at in range(0, piece.num_bytes, _AT_ONCE):
        size = min(_AT_ONCE, piece.num_bytes - at)
        if reader.content(source, first + at, size) != reader.content(stored, place + at, size):
            return False
    return True


def _drawn_again(
    grown: Checkpoint,
    reader: Reader,
    target: Target,
    piece: Piece,
    place: int,
    seed: int,
    ratios: list[float],
) -> bool:
    """Whether a changed block is what plan and seed give; notes the size of its noise."""
    assert piece.change is not None
    source = reader.block(piece.source, piece.index)
    expected = changed(source, piece.change, seed).to(DTYPES[target.dtype]).contiguous()
    there = reader.content(grown.tensors[target.name], place, piece.num_bytes)
    if piece.change.noise and piece.change.scale and piece.change.part is None:
        noise = expected.float() / piece.change.scale - source
        ratios.append(float(noise.std() / (piece.change.noise * source.std())))
    return bytes(there) == bytes(expected.view(torch.uint8).numpy())


# -- function --------------------------------------------------------------------------------------------


def _may_use_transformers(memory_limit: int, verdict: Verdict) -> bool:
    """Whether it is installed, and fits."""
    what = "names and shapes of transformers' class, and the function"
    if importlib.util.find_spec("transformers") is None:
        verdict.skipped.append(f"{what}: transformers is not installed (pip install 'regrow[hf]')")
        return False
    more = 0 if "transformers.modeling_utils" in sys.modules else _TRANSFORMERS_BYTES
    needed = memory_bytes() + more
    if needed > memory_limit:
        verdict.skipped.append(
            f"{what}: Python, torch and transformers take memory_limit={ceil(needed / 2**20)}MiB, and "
            f"{memory_limit >> 20} MiB are allowed"
        )
    return needed <= memory_limit


def _function(plan: Plan, grown: Checkpoint, memory_limit: int, seed: int, verdict: Verdict) -> None:
    """Source and target on the same tokens, layer by layer, as far as memory goes."""
    importlib.import_module("transformers.models.auto.modeling_auto")  # before memory is looked at
    now = memory_bytes() + _WARM_BYTES
    models = [Layerwise(checkpoint, memory_limit - now) for checkpoint in (plan.source, grown)]
    needed = now + max(model.least_bytes for model in models)
    if needed > memory_limit:
        verdict.skipped.append(
            f"the function: a layer with one expert at a time, in fp32, takes memory_limit="
            f"{ceil(needed / 2**20)}MiB, {now >> 20} of them the program, and {memory_limit >> 20} MiB are "
            "allowed"
        )
        return
    generator = torch.Generator().manual_seed(seed)
    vocab_size = int(plan.source.config["vocab_size"])
    tokens_BT = torch.randint(0, vocab_size, (_BATCH, _LENGTH), generator=generator)
    try:
        ends, choices = zip(*(_run(model, tokens_BT) for model in models), strict=True)
        found = _compared(models, ends, None if plan.operator.deepens else choices, plan.before.experts)
    finally:
        for model in models:
            model.close()
    verdict.function = found
    bound = _ROUNDING * found.largest_logit
    if plan.exactness is Exactness.EXACT and not found.max_change <= bound:
        verdict.problems.append(
            f"the function was promised to be exact, and logits change by {found.max_change:.3g}, more than "
            f"{bound:.3g}"
        )


def _run(model: Layerwise, tokens_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The final residual stream, and the chosen experts of each layer that has some."""
    last, chosen = torch.empty(0), []
    for last, experts_Nk in model.hidden(tokens_BT):  # noqa: B007, of which only the last is wanted
        if experts_Nk is not None:
            chosen.append(experts_Nk)
    return last, chosen


def _compared(
    models: list[Layerwise],
    ends: tuple[Tensor, ...],
    choices: tuple[list[Tensor], ...] | None,
    num_experts: int,
) -> Function:
    """Two passes over the vocabulary in parts: normalisers first, then the divergence."""
    max_change = largest = 0.0
    totals = [torch.full((ends[0].shape[0] * ends[0].shape[1],), -torch.inf) for _ in models]
    for parts in zip(*(m.logits(x) for m, x in zip(models, ends, strict=True)), strict=True):
        max_change = max(max_change, float((parts[0] - parts[1]).abs().max()))
        largest = max(largest, float(parts[0].abs().max()))
        totals = [torch.logaddexp(t, part.logsumexp(-1)) for t, part in zip(totals, parts, strict=True)]
    divergence = 0.0
    for parts in zip(*(m.logits(x) for m, x in zip(models, ends, strict=True)), strict=True):
        p, q = (part - total[:, None] for part, total in zip(parts, totals, strict=True))
        divergence += float((p.exp() * (p - q)).sum())
    shared = []
    for one, other in zip(*choices, strict=True) if choices else ():
        is_there = torch.zeros(len(one), num_experts, dtype=torch.bool).scatter_(1, other % num_experts, True)
        shared.append(is_there.gather(1, one).float().mean())
    return Function(
        tokens=len(totals[0]),
        max_change=max_change,
        largest_logit=largest,
        divergence=max(0.0, divergence / len(totals[0])),
        agreement=float(torch.stack(shared).mean()) if shared else None,
    )
