"""The window is the longest suffix of whole units within both limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc.engine.window import Window, WindowConfig, window_start

units_strategy = st.lists(
    st.integers(1, 12).flatmap(lambda span: st.tuples(st.integers(1, span), st.just(span))),
    max_size=40,
)
config_strategy = st.builds(
    WindowConfig, window_tokens=st.integers(1, 60), window_positions=st.integers(1, 90)
)


def fits(units: list[tuple[int, int]], config: WindowConfig) -> bool:
    tokens, positions = sum(u[0] for u in units), sum(u[1] for u in units)
    return tokens <= config.window_tokens and positions <= config.window_positions


@given(units_strategy, config_strategy)
def test_window_start_is_the_first_unit_from_which_all_fit(
    units: list[tuple[int, int]], config: WindowConfig
) -> None:
    start = window_start([u[0] for u in units], [u[1] for u in units], config)
    assert fits(units[start:], config)
    assert start == 0 or not fits(units[start - 1 :], config)


@given(units_strategy, config_strategy)
def test_window_followed_along_the_stream_equals_window_start(
    units: list[tuple[int, int]], config: WindowConfig
) -> None:
    window = Window(config)
    for index, (token_count, span) in enumerate(units):
        earlier = units[:index]
        start = window_start([u[0] for u in earlier], [u[1] for u in earlier], config)
        assert window.unit_count == index - start
        place = window.push(token_count, span)
        assert place.window_token == sum(u[0] for u in earlier[:start])
        assert place.window_position == sum(u[1] for u in earlier[:start])
        assert place.first_token == sum(u[0] for u in earlier)
        assert place.position == sum(u[1] for u in earlier)


@given(units_strategy, config_strategy)
def test_a_copy_goes_on_alone(units: list[tuple[int, int]], config: WindowConfig) -> None:
    window = Window(config)
    for unit in units:
        window.push(*unit)
    before = (window.unit_count, window.first_token, window.next_token)
    window.copy().push(5, 7)
    assert (window.unit_count, window.first_token, window.next_token) == before


@pytest.mark.parametrize("field", ["window_tokens", "window_positions"])
def test_a_window_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=">= 1"):
        WindowConfig(**{field: 0})
