"""What the embedded language is made of: every parameter of it, and its words."""

import dataclasses
from dataclasses import dataclass

from moe.plain import check, check_positive

FAMILIES = ("facts", "grammar", "arithmetic", "recall", "hops")
ABRUPT = ("recall",)  # learned all at once, at a time that differs from seed to seed
NUM_CHOICES = 4
MAX_LENGTH = 1 << 10  # tokens of a document


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Every parameter of the language; `world_seed` fixes its facts, word classes, split and test items."""

    source: str
    vocab_size: int
    world_seed: int
    held_out_fraction: float  # of the possible documents of each family but facts
    level_zipf: float  # in training, the share of the i-th level falls as i^-level_zipf (not facts)
    # Shares of the training tokens
    share_facts: float
    share_grammar: float
    share_arithmetic: float
    share_recall: float
    share_hops: float
    # Facts
    num_first_names: int
    num_last_names: int
    num_entities: int
    entity_zipf: float
    num_relations: int
    num_values: int  # per relation
    num_templates: int  # per relation; one of them is held out of training, chosen per fact
    num_strata: int  # of entities by frequency, each four times as large as the one above it
    # Grammar
    num_nouns: int
    noun_zipf: float
    num_classes: int
    num_verbs: int
    max_depth: int  # clauses between the subject and its verb
    # Arithmetic
    modulus: int
    max_operand: int
    max_operators: int
    # Recall
    num_keys: int
    min_pairs: int
    max_pairs: int
    recall_queries: int
    # Hops
    num_places: int
    num_moves: int
    max_hops: int

    def __post_init__(self) -> None:
        check(self.source == "world", f"data.source={self.source} must be world here")
        shares = {f"share_{name}": getattr(self, f"share_{name}") for name in FAMILIES}
        may_be_zero = ("world_seed", "level_zipf", "entity_zipf", "noun_zipf", *shares)
        free = {"source", "held_out_fraction", *may_be_zero}
        check_positive(self, "data", *(f.name for f in dataclasses.fields(self) if f.name not in free))
        for name in may_be_zero:
            check(getattr(self, name) >= 0, f"data.{name}={getattr(self, name)} must not be negative")
        total = sum(shares.values())
        check(abs(total - 1) < 1e-6, f"data.share_*={list(shares.values())} add up to {total:g}; make it 1")
        check(
            0.01 <= self.held_out_fraction <= 0.5,
            f"data.held_out_fraction={self.held_out_fraction} must lie in [0.01, 0.5]",
        )
        self._check_families()
        needed = len(vocabulary(self)[0])
        check(
            self.vocab_size >= needed,
            f"data.vocab_size={self.vocab_size} is too small for this language; it needs {needed}",
        )
        check(needed <= 1 << 16, f"this language has {needed} words; make it smaller: 65536 are the most")

    def _check_families(self) -> None:
        names = self.num_first_names * self.num_last_names
        self._between("num_entities", 4 ** (self.num_strata - 1), names, "names; raise data.num_last_names")
        self._between("num_templates", 2, None, "one template of each fact is held out")
        self._between("num_values", NUM_CHOICES, None, "an item has four choices")
        self._between("num_classes", 2, self.num_nouns, "each class needs a noun")
        self._between("modulus", NUM_CHOICES, None, "an item has four choices")
        self._between("max_operand", 1, self.modulus - 1, "operands are residues")
        self._between("min_pairs", 2, self.max_pairs, "one pair asks nothing")
        self._between("max_pairs", NUM_CHOICES, self.num_keys, "an item has four choices, no key two pairs")
        self._between("recall_queries", 1, self.min_pairs, "a key is asked for once")
        self._between("num_places", NUM_CHOICES, None, "an item has four choices")
        self._between("num_moves", 2, None, "one move alone always commutes")
        longest = {
            "max_depth": 1 + 5 * (self.max_depth + 1),
            "max_operators": 4 + 2 * self.max_operators,
            "max_pairs": 2 + 2 * (self.max_pairs + self.recall_queries),
            "max_hops": 3 + self.max_hops,
        }
        for name, length in longest.items():
            check(
                length <= MAX_LENGTH,
                f"data.{name}={getattr(self, name)} makes documents of {length} tokens; choose less than "
                f"{MAX_LENGTH} allow",
            )

    def _between(self, name: str, low: int, high: int | None, why: str) -> None:
        value = getattr(self, name)
        bounds = f"at least {low}" if high is None else f"in {low}..{high}"
        check(
            low <= value and (high is None or value <= high), f"data.{name}={value} must be {bounds} ({why})"
        )


def vocabulary(c: WorldConfig) -> tuple[list[str], dict[str, int]]:
    """The words by id, and where each block of them starts."""
    values = [f"{chr(97 + r)}-{i}" for r in range(c.num_relations) for i in range(c.num_values)]
    templates = [
        f"{word}-{chr(97 + r)}{t}"
        for r in range(c.num_relations)
        for t in range(c.num_templates)
        for word in ("has", "as")
    ]
    verbs = [
        f"{_syllables(v)}r{'aeiou'[k % 5] * (1 + k // 5)}{number}"
        for v in range(c.num_verbs)
        for k in range(c.num_classes)
        for number in ("", "n")
    ]
    blocks = {
        "marks": [f"{name}:" for name in FAMILIES],
        "digits": [str(i) for i in range(c.modulus)],
        "operators": ["+", "-", "="],
        "keys": [f"#{i}" for i in range(c.num_keys)],
        "answers": [f">{i}" for i in range(c.num_keys)],
        "ask": ["?"],
        "places": [f"@{i}" for i in range(c.num_places)],
        "moves": [f"go{i}" for i in range(c.num_moves)],
        "first": [_syllables(i).title() for i in range(c.num_first_names)],
        "last": [_syllables(i).title() + "son" for i in range(c.num_last_names)],
        "templates": templates,
        "values": values,
        "the": ["the"],
        "prepositions": ["near", "under", "behind", "with"],
        "nouns": [f"{_syllables(i)}k{number}" for i in range(c.num_nouns) for number in ("", "s")],
        "verbs": verbs,
    }
    words: list[str] = []
    start = {}
    for name, block in blocks.items():
        start[name] = len(words)
        words += block
    return words, start


def _syllables(i: int) -> str:
    consonants, vowels = "bdfglmnpstvz", "aeiou"
    word = consonants[i % 12] + vowels[i // 12 % 5]
    return word if i < 60 else word + _syllables(i // 60 - 1)
