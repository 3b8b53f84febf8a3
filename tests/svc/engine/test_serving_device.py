"""A device that is not there stops the start with one line, not with a traceback."""

from __future__ import annotations

import pytest
import torch

from svc.engine.errors import DeviceError
from svc.engine.serving import model_config


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_by_name(device: str) -> None:
    with pytest.raises(DeviceError, match=device) as raised:
        model_config("builtin", "auto", device)
    assert "\n" not in str(raised.value)


def test_the_cpu_can_always_be_used() -> None:
    assert model_config("builtin", "auto", "cpu").device == torch.device("cpu").type
