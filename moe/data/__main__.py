"""`python -m moe.data conf/data/world.yaml` prints training documents and items of each family, in words."""

import sys
from pathlib import Path

import yaml

from moe.data import Questions, parse_data
from moe.data.draws import Draws
from moe.data.items import Items
from moe.data.language import WorldConfig
from moe.data.world import World
from moe.plain import check

_DOCUMENTS, _ITEMS = 3, 2


def main(argv: list[str]) -> int:
    """0, or 2 and one line for what a user can put right."""
    try:
        check(len(argv) == 1, f"{len(argv)} arguments, and it needs one; give conf/data/world.yaml")
        _print(_config(argv[0]))
    except ValueError as error:
        print(f"moe.data: {error}", file=sys.stderr)
        return 2
    return 0


def _config(path: str) -> WorldConfig:
    """The language that a file describes; ValueError if it is none."""
    try:
        section = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give conf/data/world.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}); correct it") from None
    config = parse_data(section)
    if not isinstance(config, WorldConfig):
        raise ValueError(
            f"{path} has data.source={config.source}, and this prints data=world; give conf/data/world.yaml"
        )
    return config


def _print(config: WorldConfig) -> None:
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
    sys.exit(main(sys.argv[1:]))
