"""What `--model` names, as far as can be seen without loading it."""

from __future__ import annotations

from pathlib import Path

from svc.config import BUILTIN_MODEL, ConfigError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".ckpt", ".json")


def check_model(model: str) -> None:
    """Refuses what can be neither a folder nor a name on the hub, which would be asked for it.

    Raises:
        ConfigError: it is a file, or looks like a path and is no folder.
    """
    path = Path(model).expanduser()
    if model == BUILTIN_MODEL or path.is_dir():
        return
    if path.is_file():
        folder = path.absolute().parent
        raise ConfigError(f"model {model!r} is a file; give the folder it lies in: {folder}")
    looks_like_path = (
        model.startswith(("/", "./", "../", "~"))
        or model.endswith(("/", *_WEIGHTS))
        or model.count("/") > 1
    )
    if looks_like_path:
        raise ConfigError(f"model {model!r} is no folder, and no name that the hub could know")
