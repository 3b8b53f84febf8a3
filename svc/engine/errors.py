"""What the engine raises on purpose: one class per decision the caller can make."""


class EngineError(Exception):
    """Base of every error that svc.engine raises on purpose."""


class NotAModelError(EngineError):
    """The path names no model: neither a checkpoint folder nor a reachable hub repository."""

    def __init__(self, path: str, looked_for: str) -> None:
        super().__init__(f"{path!r} is not a model: looked for {looked_for} there and found none")
        self.path = path
        self.looked_for = looked_for


class UnsupportedModelError(EngineError):
    """The model exists, but the engine cannot run it exactly, so it refuses to."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"model {path!r} is not supported: {reason}")
        self.path = path
        self.reason = reason


class DeviceError(EngineError):
    """The device does not exist here, or this build of torch cannot use it."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device {device!r} cannot be used: {reason}")
        self.device = device


class ConformanceError(EngineError):
    """The engine's attention disagrees with the model's own: serving it would be wrong."""

    def __init__(self, layer: str, difference: float, tolerance: float) -> None:
        super().__init__(
            f"the engine differs from stock attention first at {layer}: relative difference "
            f"{difference:.3g}, allowed {tolerance:.3g}"
        )
        self.layer = layer
        self.difference = difference
        self.tolerance = tolerance


class EmptyQuestionError(EngineError):
    """The question holds no token, so nothing can be retrieved for it."""

    def __init__(self) -> None:
        super().__init__("the question holds no token: it is empty, or only what is dropped")


class QuestionTooLongError(EngineError):
    """The question takes more tokens than allowed, without any of its history."""

    def __init__(self, token_count: int, allowed_token_count: int) -> None:
        super().__init__(
            f"the question takes {token_count} tokens, allowed are {allowed_token_count}"
        )
        self.token_count = token_count
        self.allowed_token_count = allowed_token_count
