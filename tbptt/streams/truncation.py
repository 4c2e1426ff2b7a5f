"""`Truncation`: how rows are cut into windows: length, stride, burn-in, jitter."""

import dataclasses

import numpy as np

from tbptt import checks

SHORT_PROBABILITY = 0.05  # probability of half the length, with jitter: Merity et al. (2018)
LEAST_JITTERED = 5  # the smallest number of steps of a jittered window, if T allows


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Sets how a row is cut into windows; the shape `[T, B]` is static, whatever is chosen.

        | look back: T - stride steps           | new: stride steps   |
        | burn in: no gradient | gradient       | gradient and score  |

    Every target is scored once, in the window in which it is new.

    Attributes:
      window_length: T (k2), the number of steps in a window.
      stride: k1, the number of steps by which a row advances. Below T windows overlap: the gradient
        reaches at least T - stride - burn_in steps back from every step that is scored. None: T.
      burn_in: the number of first steps without a gradient, which only update the state with the
        current parameters.
      jitter: standard deviation of the window's length, in steps; its mean is then
        `nominal_length`, with probability 0.05 half of that. The update is scaled by length over
        nominal length. 0: no jitter.
      cut: probability that the gradient is cut before a step, for every row and step separately.
        Elsewhere it is scaled by 1 / (1 - cut), so that its expectation is that of the whole
        window.
      drop_state: probability that a row starts anew before a window.

    Example:
      >>> Truncation(window_length=20, stride=5, burn_in=3).look_back
      15
      >>> Truncation(window_length=80, jitter=5).nominal_length
      70

    Reference: Williams & Peng (1990), An efficient gradient-based algorithm for on-line training
      of recurrent network trajectories (stride); Kapturowski et al. (2019), Recurrent experience
      replay in distributed reinforcement learning (burn-in); Merity, Keskar & Socher (2018),
      Regularizing and optimizing LSTM language models (jitter); Tallec & Ollivier (2017),
      Unbiasing truncated backpropagation through time (cut); Melis, Dyer & Blunsom (2018), On the
      state of the art of evaluation in neural language models (drop_state).
    """

    window_length: int
    stride: int | None = None
    burn_in: int = 0
    jitter: float = 0.0
    cut: float = 0.0
    drop_state: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError if the values do not fit together."""
        checks.check_at_least("window_length", self.window_length, 1)
        if self.stride is not None:
            checks.check_between("stride", self.stride, 1, self.window_length + 1)
        checks.check_at_least("burn_in", self.burn_in, 0)
        if self.burn_in > self.look_back:
            most = self.window_length - self.burn_in
            advice = f"Use stride={most} or less" if most > 0 else "Use a smaller burn_in"
            raise ValueError(
                f"burn_in ({self.burn_in}) must be at most window_length - stride "
                f"({self.look_back}), because what burns in is not scored, and every step is "
                f"scored once. {advice}."
            )
        checks.check_between("cut", self.cut, 0.0, 1.0)
        if not 0.0 <= self.drop_state <= 1.0:
            raise ValueError(f"drop_state ({self.drop_state}) must be from 0.0 to 1.0.")
        checks.check_at_least("jitter", self.jitter, 0.0)
        if self.jitter and self.look_back:
            raise ValueError(
                f"jitter ({self.jitter}) and stride ({self.stride}) both say how far a window "
                "advances. Use one of them."
            )
        if self.jitter and self.nominal_length < 1:
            raise ValueError(
                f"jitter ({self.jitter}) leaves no length: windows are window_length - 2 * jitter "
                f"long on average. Use a window_length above {2 * self.jitter:g}."
            )

    @property
    def look_back(self) -> int:
        """The number of a window's steps that were new in an earlier window: T - stride."""
        return 0 if self.stride is None else self.window_length - self.stride

    @property
    def nominal_length(self) -> int:
        """The number of a window's new steps: its stride, or with jitter the nominal length.

        With jitter it is two standard deviations below T, the length that no window exceeds.
        """
        return self.window_length - self.look_back - round(2 * self.jitter)

    @property
    def is_random(self) -> bool:
        """Whether windows differ from epoch to epoch."""
        return bool(self.jitter or self.cut or self.drop_state)

    def windows(self, row_length: int, *, whole: bool) -> int:
        """Returns the number of windows in an epoch of `row_length` steps.

        With `whole`, a short last window is left out.
        """
        if self.jitter:
            mean = self.nominal_length * (1 - SHORT_PROBABILITY / 2)
            least = -(-row_length // self.window_length)
            return min(max(least, round(row_length / mean)), row_length)
        return (row_length if whole else row_length + self.nominal_length - 1) // (
            self.nominal_length
        )

    def lengths(self, row_length: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws jittered lengths of `count` windows, `[count]` int64, that sum to `row_length`.

        They are drawn by the rule of Merity et al., and then all adjusted a little to fit the sum.
        """
        nominal, most = self.nominal_length, self.window_length
        base = np.where(rng.random(count) < SHORT_PROBABILITY, nominal / 2, nominal)
        drawn = np.clip(rng.normal(base, self.jitter), min(LEAST_JITTERED, most), most)
        more = drawn - 1.0  # beyond the first step, which every window has
        missing = row_length - count - more.sum()
        if missing > 0:
            more += (most - 1 - more) * (missing / (most - 1 - more).sum())
        else:
            more *= (row_length - count) / max(more.sum(), 1.0)
        ends = np.floor(np.cumsum(more)).astype(np.int64)  # down: no length becomes above T
        ends[-1] = row_length - count
        return 1 + np.diff(ends, prepend=0)


def truncation_of(window_length: int | None, truncation: Truncation | None) -> Truncation:
    """Returns a truncation, given either a window length or a truncation.

    Raises:
      ValueError: both or neither are given.
    """
    if truncation is None and window_length is not None:
        return Truncation(window_length)
    if truncation is None or window_length is not None:
        raise ValueError(
            f"window_length ({window_length}) and truncation ({truncation}) say the same thing "
            "twice, or nothing. Give exactly one of them."
        )
    return truncation
