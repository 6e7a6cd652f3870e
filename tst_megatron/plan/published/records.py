"""Define what the files of this folder hold, a dataclass for each kind of block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run of the paper, as its tables 1 and 3 print it."""

    model: str
    source: str
    parameters: int
    num_steps: int
    positions_per_step: int
    raw_tokens: float
    hours: float
    """Of one GPU."""
    loss: float
    loss_by_figure: float | None = None
    """Given where the figure disagrees with the table; ``paper.yaml`` says why."""
    superposition_steps: int = 0
    bag_size: int = 1
    superposition_tokens: float = 0.0

    @property
    def superposition_fraction(self) -> float:
        """Return r, the share of steps in superposition."""
        return self.superposition_steps / self.num_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two runs that the paper compares."""

    tst: str
    baseline: str
    equal: Literal["flops", "loss", "data"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """End losses with only one side in superposition."""

    source: str
    bag_size: int
    superposition_fraction: float
    baseline: float
    full: float
    input_only: float
    output_only: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Two points of the loss of an ordinary run, or of two that are alike but for their length."""

    model: str
    source: str
    parameters: int
    positions: list[float]
    losses: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reset:
    """The end of a run that reset something at the switch."""

    source: str
    of: str
    """Model and length."""
    gain: float
    """Loss of the ordinary run minus its own, in nats."""
    gain_here: float
    """The same of this project's small runs (docs/evidence.md, three seeds)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """Where this project's own small runs lost, and from which length on none did."""

    source: str
    wins_from_steps: int
    """Shorter runs are too short to say, whatever their size."""
    lost_up_to: int
    """Positions for each parameter, as the next."""
    none_lost_from: int

    @property
    def said(self) -> str:
        """Say it in a sentence without its end."""
        return (
            f"some lost with up to {self.lost_up_to} positions for each parameter, and none from "
            f"{self.none_lost_from} on"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Final losses over bag size and share of superposition, of one model and length."""

    source: str
    table: int
    parameters: int
    num_steps: int
    positions_per_step: int
    slot_weights: Literal["uniform", "1/i"]
    baseline: float
    bag_sizes: list[int]
    losses: Mapping[float, list[float]]
    """Share of steps -> the loss at each bag size."""

    @property
    def positions_per_parameter(self) -> float:
        """Return the positions of a run over the parameters of its model."""
        return self.num_steps * self.positions_per_step / self.parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that can be planned for."""

    source: str
    device: str
    """Part of the name that its driver gives."""
    peak_teraflops: float
    """Dense, in BF16."""
    memory_gigabytes: float | None = None
    link_gigabytes: float | None = None
    """Per second, to other GPUs of the node, in one direction."""
    price: float | None = None
    """Dollars per hour; None where no price was found."""
    price_low: float | None = None
    price_high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """An MFU that was reached by somebody."""

    name: str
    kind: str
    mfu: float
    source: str
    active: int | None = None
    """Parameters that compute one position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """An MFU to plan with, and its range."""

    source: str
    mfu: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """A scaling law of ordinary training in its number of tokens, and what repeats are worth."""

    title: str
    source: str
    repeats: Literal["nothing", "few", "decaying"]
    floor: float
    coefficient: float
    exponent: float
    epochs: float | None = None
    """Epochs that are worth as much as new text, if repeats are ``few``."""
    decay_epochs: float | None = None
    """R*, if repeats are ``decaying``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """All files of the folder."""

    sources: Mapping[str, str]
    """Key -> the text of a source, in the order of its number."""
    runs: Mapping[str, Run]
    pairs: tuple[Pair, ...]
    resets: Mapping[str, Reset]
    """By the key of the tst block that asks for it."""
    curves: tuple[Curve, ...]
    ablation: Ablation
    here: Here
    noise_nats: float
    grids: Mapping[str, Grid]
    gpus: Mapping[str, Gpu]
    prices_of: str
    anchors: tuple[Anchor, ...]
    moe_mfu: Band
    laws: Mapping[str, Law]

    def cite(self, *keys: str) -> str:
        """Return the numbers of sources in brackets, such as ``[1, 4]``."""
        order = list(self.sources)
        return f"[{', '.join(str(order.index(key) + 1) for key in keys)}]"
