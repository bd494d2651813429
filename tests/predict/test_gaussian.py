"""The Gaussian process against what is known of it in closed form."""

import math

import numpy as np
import pytest
from rounding import UNITS, arithmetic

from budgetft.predict.gaussian import Prior, posterior

PRIOR = Prior(offset=0.06, smooth=0.02, noise=1e-6)
VARIANCE = PRIOR.offset**2 + PRIOR.smooth**2
JITTER = 1e-10
"""What the process adds to the diagonal, which must stay positive in fp64; the noise of PRIOR is a hundredth of it."""
CONDITION = 3 * VARIANCE / JITTER
"""Of the covariance of three observations: its trace over its least eigenvalue, at most."""


def test_without_observations_it_is_the_prior():
    mean, spread = posterior(np.zeros((0, 3)), np.zeros(0), np.random.default_rng(0).normal(size=(4, 3)), PRIOR)
    assert (mean == 0).all()
    assert spread == arithmetic(np.full(4, math.hypot(0.06, 0.02)))


def test_it_passes_through_what_was_observed_without_noise():
    seen, values = np.array([[0.0, 0.0], [0.5, 1.0], [2.0, -1.0]]), np.array([0.03, 0.05, -0.02])
    mean, spread = posterior(seen, values, seen, PRIOR)
    assert mean == pytest.approx(values, abs=CONDITION * UNITS["fp64"] + JITTER / 0.02**2)
    assert spread.max() < math.sqrt(VARIANCE * (CONDITION * UNITS["fp64"] + JITTER / 0.02**2))


def test_far_away_only_the_shared_offset_is_known():
    seen, values = np.array([[0.0]]), np.array([0.05])
    mean, spread = posterior(seen, values, np.array([[1000.0]]), PRIOR)
    share = 0.06**2 / (0.06**2 + 0.02**2)  # of the variance of one observation
    assert mean[0] == pytest.approx(0.05 * share, rel=2 * JITTER / VARIANCE)
    assert spread[0] == pytest.approx(math.sqrt(VARIANCE - 0.06**2 * share), rel=9 * JITTER / VARIANCE)
    no_offset = Prior(offset=0.0, smooth=0.02, noise=1e-6)
    mean, spread = posterior(seen, values, np.array([[1000.0]]), no_offset)
    assert mean[0] == 0.0
    assert spread[0] == arithmetic(0.02)


def test_noise_makes_two_observations_of_one_place_their_shrunken_mean():
    prior = Prior(offset=0.0, smooth=1.0, noise=0.5)
    mean, spread = posterior(np.zeros((2, 1)), np.array([1.0, 3.0]), np.zeros((1, 1)), prior)
    assert mean[0] == pytest.approx(2.0 / (1 + 0.25 / 2), rel=2 * JITTER)
    assert spread[0] == pytest.approx(math.sqrt(1 - 1 / (1 + 0.25 / 2)), rel=9 * JITTER)


def test_it_is_less_sure_the_further_away_and_never_surer_than_its_observations():
    prior = Prior(offset=0.01, smooth=0.1, noise=0.003)
    asked = np.linspace(0, 5, 20)[:, None]
    _, spread = posterior(np.zeros((1, 1)), np.array([0.2]), asked, prior)
    assert (np.diff(spread) > 0).all()
    _, more = posterior(np.array([[0.0], [3.0]]), np.array([0.2, 0.1]), asked, prior)
    assert (more <= spread * (1 + 100 * UNITS["fp64"] * VARIANCE / 0.003**2)).all()


def test_the_same_place_seen_often_is_not_a_singular_matrix():
    mean, spread = posterior(np.zeros((30, 2)), np.full(30, 0.1), np.zeros((1, 2)), Prior(offset=1.0, smooth=0.1, noise=0.0))
    assert mean[0] == pytest.approx(0.1, rel=30 * JITTER + 30 * 30 * UNITS["fp64"] / JITTER)
    assert np.isfinite(spread).all()
