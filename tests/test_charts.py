"""Charts of the page: any values, names that are text and nothing else, files that stay small."""

from __future__ import annotations

import numpy as np
import pytest

from raypref.report import charts


def test_a_curve_survives_any_values() -> None:
    for values in ([3.0], [1.0] * 5, [0.0, 0.0], [np.nan, 2e-6, 3e-6], list(range(5000))):
        svg = charts.curve('a "name" <&>', np.arange(len(values)), np.array(values, dtype=float))
        label = "a &quot;name&quot; &lt;&amp;&gt;, "
        assert svg.startswith("<svg viewBox=") and label in svg
        assert len(svg) < 60_000


def test_smoothing_keeps_a_constant_and_its_length() -> None:
    assert np.allclose(charts.smoothed(np.full(100, 2.0)), 2.0)
    noisy = np.random.default_rng(0).normal(size=300)
    assert charts.smoothed(noisy).std() < 0.5 * noisy.std()


def test_a_dollar_sign_in_a_model_name_is_no_formula() -> None:
    row = charts.Gain("$\\frac{1$ <b>", 0.1, 0.0, 0.2, None)
    assert "$\\frac{1$ &lt;b&gt;" in charts.forest("PickScore", [row], digits=2)


@pytest.mark.parametrize("threshold", [None, 0.02, -50.0])
def test_a_histogram_survives_any_values(threshold: float | None) -> None:
    for values in ([0.02], [1.0] * 9, [-1e6, 0.0, 1e6], list(np.linspace(-1, 3, 5000))):
        svg = charts.histogram("gap", np.array(values), threshold=threshold)
        assert svg.startswith("<svg viewBox=") and f"of {len(values)} values are above" in svg
        assert len(svg) < 60_000
