"""`python -m moe.data conf/data/world.yaml` prints training documents and items of each family, in words."""

import sys
from pathlib import Path

import yaml

from moe.data import Questions, parse_data
from moe.data.draws import Draws
from moe.data.items import Items
from moe.data.language import WorldConfig
from moe.data.world import World

_DOCUMENTS, _ITEMS = 3, 2


def main(path: str) -> None:
    config = parse_data(yaml.safe_load(Path(path).read_text()))
    assert isinstance(config, WorldConfig), "this prints the embedded language; give conf/data/world.yaml"
    world = World(config)
    questions = Questions(
        num_items=1000, families=tuple(world.families), context_length=1, continuation_length=1
    )
    for family, items in zip(world.families.values(), world.items(questions), strict=True):
        documents = family.training(Draws("shown", family.name), 4 * _DOCUMENTS)
        for tokens, length in zip(documents.tokens[:_DOCUMENTS], documents.length, strict=False):
            print(world.decode(tokens[:length]))
        for place in range(_ITEMS - 1, -1, -1):
            print(item_in_words(world, items, len(items) - 1 - place * len(items) // _ITEMS))
        print()


def item_in_words(world: World, items: Items, i: int) -> str:
    """The context, then the choices, the right one in brackets."""
    choices = [world.decode(choice) for choice in items.choices[i]]
    choices[items.answer[i]] = f"[{choices[items.answer[i]]}]"
    return f"{world.decode(items.context[i, : items.context_length[i]])} … {' | '.join(choices)}"


if __name__ == "__main__":
    main(*sys.argv[1:])
