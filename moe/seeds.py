"""One seed, many streams: each consumer derives its own by name, so that adding one shifts no other."""

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called `names` under `seed`; a pure function, equal on any machine."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
