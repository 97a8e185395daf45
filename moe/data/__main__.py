"""`python -m moe.data conf/data/world.yaml` prints some training documents and one item per family."""

import sys
from pathlib import Path

import yaml

from moe.data import Questions, WorldConfig
from moe.data.world import FAMILIES, World
from moe.plain import parse


def main(path: str) -> None:
    world = World(parse(WorldConfig, yaml.safe_load(Path(path).read_text()), "data"))
    print(world.words(world.batch(0, 0, 1, 200)), "\n")
    for items in world.items(
        Questions(num_items=1000, families=FAMILIES, context_length=1, continuation_length=1)
    ):
        last = len(items) - 1  # of the highest level
        print(world.words(items.context[last, : items.context_length[last]]), end=" …\n")
        print("    " + " | ".join(map(world.words, items.choices[last])))


if __name__ == "__main__":
    main(*sys.argv[1:])
