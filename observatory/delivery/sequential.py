"""A sequential test of a ratio: may be evaluated after every interval, and still has a known rate of false alarms.

The test compares "of n requests, a share of at most `allowed` is bad" with a mixture of larger shares, as a mixture
sequential probability ratio test: H. Robbins, "Statistical methods related to the law of the iterated logarithm",
Annals of Mathematical Statistics 41 (1970); for deployments M. Lindon, C. Sanden and V. Shirikian, "Rapid regression
detection in software deployments through sequential testing", KDD 2022 (arXiv:2205.14762). While the share is at most
`allowed`, the likelihood ratio is a supermartingale, so it reaches 1/alpha with a probability of at most alpha, however
often it is evaluated (Ville's inequality).

One interval multiplies the ratio of each alternative by a limited factor, so that no burst decides alone. That keeps
the supermartingale: a smaller factor has a smaller expectation.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

# Odds of a bad request under each alternative, as multiples of the allowed odds; all have the same weight.
ODDS = (1.5, 2.5, 5.0, 10.0, 25.0, 80.0, 250.0)
INTERVAL_SHARE = 0.45  # of the evidence that a decision takes, at most, from one interval: three are needed
SMALLEST, LARGEST = 1e-6, 0.999  # a ratio of 0 or 1 has no odds
_STEPS = 30  # of a bisection: the bound is exact to a billionth


@dataclass(frozen=True, kw_only=True)
class RatioTest:
    """The state of one test; `add` returns the next one.

    Attributes:
        threshold: the logarithm of 1/alpha.
        interval_share: most of the threshold that comes from one interval.
        bad: bad requests so far.
        requests: requests so far.
        ratios: logarithm of the limited likelihood ratio of each alternative.
    """

    threshold: float
    interval_share: float = INTERVAL_SHARE
    bad: float = 0.0
    requests: float = 0.0
    ratios: tuple[float, ...] = (0.0,) * len(ODDS)

    def add(self, bad: float, requests: float, allowed: float) -> RatioTest:
        """Return the test after an interval with so many bad requests, of which the share `allowed` is allowed."""
        most = self.threshold * self.interval_share
        good = max(requests - bad, 0.0)
        ratios = tuple(
            ratio + min(_log_ratio(bad, good, allowed, odds), most)
            for ratio, odds in zip(self.ratios, ODDS, strict=True)
        )
        return dataclasses.replace(self, bad=self.bad + bad, requests=self.requests + requests, ratios=ratios)

    @property
    def evidence(self) -> float:
        """The logarithm of the limited likelihood ratio of the mixture."""
        return _log_mean(self.ratios)

    @property
    def rejected(self) -> bool:
        """Whether the share is larger than allowed."""
        return self.evidence >= self.threshold

    @property
    def suspicious(self) -> bool:
        """Whether half of the evidence for that is there: more requests are needed."""
        return self.evidence >= self.threshold / 2

    @property
    def share(self) -> float:
        """The share of bad requests."""
        return self.bad / self.requests if self.requests else 0.0


def upper_bound(bad: float, requests: float, error: float) -> float:
    """Return the upper confidence bound of a share; the true one is above it with a probability of at most `error`.

    It is Chernoff's bound: W. Hoeffding, "Probability inequalities for sums of bounded random variables", Journal of
    the American Statistical Association 58 (1963), theorem 1. Without a bad request it is exact.
    """
    if requests <= 0:
        return 1.0
    share, enough = min(bad / requests, 1.0), -math.log(error) / requests
    low, high = share, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(share, middle) < enough else (low, middle)
    return high


def exceeds(bad: float, requests: float, allowed: float, error: float) -> bool:
    """Return whether one sample alone contradicts a share of at most `allowed`, with this probability of an error."""
    if not requests or bad / requests <= allowed:
        return False
    return requests * divergence(min(bad / requests, 1.0), allowed) >= -math.log(error)


def divergence(share: float, other: float) -> float:
    """Return the Kullback-Leibler divergence of two ratios."""
    other = min(max(other, SMALLEST), 1 - 1e-12)
    first = share * math.log(share / other) if share else 0.0
    return first + ((1 - share) * math.log((1 - share) / (1 - other)) if share < 1 else 0.0)


def _log_ratio(bad: float, good: float, allowed: float, odds: float) -> float:
    """Return the logarithm of the likelihood ratio of an alternative against the allowed share."""
    allowed = min(max(allowed, SMALLEST), LARGEST)
    scale = 1 - allowed + odds * allowed
    return bad * math.log(odds / scale) - good * math.log(scale)


def _log_mean(logarithms: tuple[float, ...]) -> float:
    largest = max(logarithms)
    return largest + math.log(sum(math.exp(each - largest) for each in logarithms) / len(logarithms))
