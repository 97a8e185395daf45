"""A model of ours as the harness's language model: log-likelihoods and greedy generation, in fp32."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from moe.data import Data, Questions
from moe.model import MoETransformer
from moe.plain import check

_LOGGER = logging.getLogger(__name__)
_PASS_TOKENS = 1 << 14  # in one forward pass, padding counted
_MAX_GEN_TOKENS = 256  # where a task gives no number of its own, as the harness does

Request = tuple[Any, list[int], list[int]]  # texts, tokens of the context, tokens of its continuation


class Adapter(TemplateLM):
    """A `MoETransformer` and its data's tokens behind the harness's interface; see `lm_eval.api.model`.

    Reads at most `max_length` tokens and forgets the first ones of a longer text. ValueError for a text that
    the data has no tokens for.
    """

    def __init__(self, model: MoETransformer, data: Data, *, max_length: int, device: str = "cpu") -> None:
        super().__init__()
        check(max_length > 0, f"max_length={max_length} must be above 0")
        self.model = model.to(device).eval()
        self.data, self.max_length = data, max_length
        self._device = torch.device(device)
        # With a capacity the experts drop tokens by what else is in the pass: then each text goes alone.
        self._pass_tokens = _PASS_TOKENS if model.config.capacity_factor is None else 1
        self._prefix = _ends_a_document(data) if data.separator is None else data.separator

    # -- tokens ------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """What a text without a context is conditioned on: the separator, or a word that ends documents."""
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text; nothing is ever added to them."""
        try:
            return self.data.encode(string)
        except ValueError as error:
            if self.data.separator is not None:
                raise
            raise ValueError(
                f"{error}; a model of the embedded language reads no other text: "
                "give it the tasks that --export writes"
            ) from None

    # -- log-likelihoods ---------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(nats of the continuation, whether it is the greedy one) of each request.

        Requests that read the same tokens share a pass: choices of one token cost one.
        """
        reads: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            if continuation:
                tokens = (context or [self._prefix]) + continuation
                reads.setdefault(tuple(tokens[-self.max_length - 1 : -1]), []).append(number)
        self._check_lengths(requests)
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        rows = list(reads)
        passes = list(_batches([len(row) for row in rows], self._pass_tokens))
        for numbers in tqdm(passes, desc="Running loglikelihood passes", disable=disable_tqdm):
            batch = [rows[number] for number in numbers]
            for tokens, x_TD in zip(batch, self._hidden(batch), strict=True):
                for number in reads[tokens]:
                    continuation = requests[number][2]
                    scores[number] = self._score(x_TD[len(tokens) - len(continuation) :], continuation)
        return scores

    def _check_lengths(self, requests: list[Request]) -> None:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        check(
            longest <= self.max_length,
            f"a continuation of {longest} tokens is longer than max_length={self.max_length}; "
            "raise --max_length",
        )
        num_cut = sum(
            len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests
        )
        if num_cut:
            _LOGGER.warning(
                "%d of %d texts are longer than max_length=%d; their first tokens are left out",
                *(num_cut, len(requests), self.max_length),
            )

    def _hidden(self, rows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """The last layer's output [T, D] of each row; padding on the right changes nothing before it."""
        tokens_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row_T, tokens in zip(tokens_BT, rows, strict=True):
            row_T[: len(tokens)] = torch.tensor(tokens)
        with torch.no_grad():
            x_BTD = self.model.hidden(tokens_BT.to(self._device))[0].float()
        return (x_TD[: len(tokens)] for x_TD, tokens in zip(x_BTD, rows, strict=True))

    def _log_p(self, x_KD: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.log_softmax(x_KD @ self.model.head.weight.float().T, dim=-1)

    def _score(self, x_KD: Tensor, continuation: list[int]) -> tuple[float, bool]:
        log_p_KV = self._log_p(x_KD)
        chosen_K = torch.tensor(continuation, device=log_p_KV.device)
        total = log_p_KV.gather(1, chosen_K[:, None]).double().sum()
        return float(total), bool((log_p_KV.argmax(1) == chosen_K).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, in windows of `max_length` tokens; each token is predicted once."""
        windows: list[Request] = []
        owner = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append(("", *make_disjoint_window(window)))
                owner.append(number)
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for number, (nats, _) in zip(owner, found, strict=True):
            totals[number] += nats
        return totals

    # -- generation --------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest next token again and again, up to a string of `until`, `max_gen_toks` or a separator.

        Every token reads the `max_length` tokens before it, without a cache. ValueError if sampling is asked.
        """
        rows = [_Row(self, *request.args[:2]) for request in requests]
        batches = list(_batches([min(row.end, self.max_length) for row in rows], self._pass_tokens))
        for numbers in tqdm(batches, desc="Generating batches", disable=disable_tqdm):
            going = [rows[number] for number in numbers if not rows[number].done]
            while going:
                hidden = self._hidden([row.tokens[-self.max_length :] for row in going])
                last_BD = torch.stack([x_TD[-1] for x_TD in hidden])
                best_B = self._log_p(last_BD)[:, : self.data.num_ids].argmax(1)
                for row, token in zip(going, best_B.tolist(), strict=True):
                    row.add(token)
                going = [row for row in going if not row.done]
        return [row.text for row in rows]


class _Row:
    """One text that is being generated."""

    def __init__(self, adapter: Adapter, context: str, gen_kwargs: dict[str, Any]) -> None:
        asked: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, _MAX_GEN_TOKENS))
        check(
            not asked["do_sample"],
            "generation_kwargs.do_sample=true is not supported; only greedy generation is",
        )
        self._data = adapter.data
        self._until = [text for text in asked["until"] if text]
        self.tokens = adapter.tok_encode(context) or [adapter.prefix_token_id]
        self._start, self.end = len(self.tokens), len(self.tokens) + asked["max_gen_toks"]
        self.text, self.done = "", asked["max_gen_toks"] <= 0

    def add(self, token: int) -> None:
        if token == self._data.separator:
            self.done = True
            return
        self.tokens.append(token)
        text = self._data.decode(np.array(self.tokens[self._start :]))
        places = [place for stop in self._until if (place := text.find(stop)) >= 0]
        self.text = text[: min(places)] if places else text
        self.done = bool(places) or len(self.tokens) == self.end


def _batches(lengths: list[int], pass_tokens: int) -> Iterator[list[int]]:
    """The numbers of rows that go through the model together, the longest first, padded to the first."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    first = 0
    while first < len(order):
        num_rows = max(1, pass_tokens // lengths[order[first]])
        yield order[first : first + num_rows]
        first += num_rows


def _ends_a_document(data: Data) -> int:
    """A token that a document of the embedded language may end with: it has no separator."""
    family = next(iter(data.held_out(1, 1)))
    questions = Questions(num_items=1, families=(family,), context_length=1, continuation_length=1)
    items = data.items(questions)[0]
    return int(items.choices[0, items.answer[0], -1])
