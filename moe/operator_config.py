"""One growth as a user writes it, and the operator that it is reduced to. No torch here."""

from dataclasses import dataclass, replace

from moe.operator import Copies, DepthMethod, Operator, WidthMethod
from moe.plain import check


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorConfig:
    """How a state grows: the keys of conf/growth, of which a choice ignores those that it does not read.

    `router_noise_scale` null is `noise_scale`.
    """

    method: DepthMethod
    depth_factor: int
    keep_first: int
    keep_last: int
    layer_map: tuple[int, ...] | None
    copies: Copies
    width_method: WidthMethod
    width_factor: int
    noise_scale: float
    router_noise_scale: float | None
    drop_fraction: float

    def check_operator(self, path: str = "growth") -> None:
        """ValueError naming `path`, the place of this growth in a configuration."""
        check(
            self.method is not DepthMethod.NONE or self.width_method is not WidthMethod.NONE,
            f"{path}.method=none and {path}.width_method=none grow nothing; "
            "choose one of them, or ask for controls: [sham]",
        )
        for name in ("keep_first", "keep_last", "noise_scale", "router_noise_scale", "drop_fraction"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"{path}.{name}={value} must not be negative")
        try:
            self.operator(seed=0)
        except ValueError as error:
            raise ValueError(str(error).replace("growth.", f"{path}.")) from None

    def operator(self, seed: int) -> Operator:
        """The growth reduced to what acts, so that equal science has one id; `seed` is of what is drawn."""
        deepens, by_map = self.method is not DepthMethod.NONE, self.method is DepthMethod.LAYER_MAP
        widens, noisy = self.width_method is not WidthMethod.NONE, self.width_method.takes_noise
        drops, router_noise = self.width_method is WidthMethod.DROP_UPCYCLE, self.router_noise_scale
        operator = Operator(
            method=self.method,
            depth_factor=self.depth_factor if deepens and not by_map else 1,
            width_method=self.width_method,
            width_factor=self.width_factor if widens else 1,
            noise_scale=self.noise_scale if noisy else 0.0,
            seed=seed,
            keep_first=self.keep_first if deepens else 0,
            keep_last=self.keep_last if deepens else 0,
            layer_map=self.layer_map,
            copies=self.copies if deepens else Copies.EXACT,
            router_noise_scale=router_noise if noisy and router_noise != self.noise_scale else None,
            drop_fraction=self.drop_fraction if drops else 0.0,
        )
        return operator if operator.draws else replace(operator, seed=None)
