import pytest

from optbench.errors import UserError
from optbench.probes.spectrum import Spectrum
from tests.probes.test_sharpness import _dense, _state


def test_trace_and_moments_are_those_of_the_dense_hessian() -> None:
    state = _state()
    truth = _dense(state, 30)
    found = Spectrum(samples=200, deflate=5, steps=30, probes=50)(state)
    assert found["spectrum/trace_low"] <= float(truth.sum()) <= found["spectrum/trace_high"]  # type: ignore[operator]
    nodes, weights = found["spectrum/nodes"], found["spectrum/weights"]
    assert isinstance(nodes, list) and isinstance(weights, list)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    # 50 sign vectors: the mean square has the relative error √(2/(P·50)) ≈ 3 % at best; 4 of these.
    second = sum(w * t**2 for w, t in zip(weights, nodes, strict=True))
    assert second == pytest.approx(float(truth.square().mean()), rel=0.15)
    assert found["spectrum/lambda_min"] == pytest.approx(float(truth[-1]), rel=1e-3)


def test_layers_are_compared_on_the_graph_that_all_probes_share() -> None:
    state = _state()
    found = Spectrum(samples=2, deflate=1, steps=2, probes=1, layer_steps=5)(state)
    assert 0 < found["spectrum/heterogeneity"] <= 1  # type: ignore[operator]
    assert found["spectrum/hvps"] == state.shared.hessian(state, None).hvps
    assert "spectrum/heterogeneity" not in Spectrum(samples=2, steps=2, probes=1, layer_steps=0)(
        state
    )


def test_it_resumes_from_its_warm_start() -> None:
    one, other = Spectrum(), Spectrum()
    one(_state())
    other.load_state_dict(one.state_dict())
    first, second = one(_state(step=1)), other(_state(step=1))
    assert all(first[key] == second[key] for key in first if "seconds" not in key)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"spectrum\.samples must be a whole number, at least 2, got 1"
    ):
        Spectrum(samples=1)
