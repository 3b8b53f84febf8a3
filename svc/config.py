"""Every setting of the service, in one place; the only reader of the environment.

Each field can be set as `LOOKBACK_<NAME>`; a name that does not exist or a value that does not fit
stops the start with the reason. Sizes are bytes, or as 500MiB or 2GiB. The defaults serve the
built-in model on a CPU with nothing set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from svc.amounts import parse_bytes

ENV_PREFIX = "LOOKBACK_"
BUILTIN_MODEL = "builtin"


class ConfigError(Exception):
    """A setting is unknown or does not fit; the message names it."""


ByteCount = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(lambda given: parse_bytes(given) if isinstance(given, str) else given),
]
"""A size in bytes; in the environment also as people write one: 500MiB, 2GiB."""


class Settings(BaseSettings):
    """Settings of both processes; frozen once read."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    data_dir: Path = Path("lookback-data")
    """Folder of the store. Both processes of one service share it."""
    store_copies: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders, with `:` between them, that are copies of `data_dir` (a backup, a snapshot, a
    replica made by rsync). What the disk cannot give is read from the first that has it; they may
    lag, and nothing is written to them."""
    shm_dir: Path | None = None
    """Folder for memory shared between the processes; absent: /dev/shm where it has room."""

    model: str = BUILTIN_MODEL
    """`builtin`, a folder, or a hub name of a supported model."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Element type of weights and of stored keys and values; auto: float32 on a CPU."""
    device: str = "cpu"
    """Torch device of both processes."""
    vision_attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel of the vision tower; flash_attention_2 needs the `gpu` extra."""

    host: str = "127.0.0.1"
    """Address both servers listen on. There is no authentication: keep it on a trusted network."""
    ingest_port: int = Field(default=50551, ge=0, le=65535)
    """Port of SessionService and IngestService; 0 takes a free one."""
    qa_port: int = Field(default=50552, ge=0, le=65535)
    """Port of QuestionService; 0 takes a free one."""

    redis_url: str | None = None
    """Redis that says which process owns a session (redis://, rediss://, unix://), for more than
    one process group; absent: this service owns every session of its `data_dir`."""
    advertised_host: str = ""
    """Name or address under which clients of other machines reach this one; empty: `host`."""

    ingest_threads: int = Field(default=0, ge=0, le=256)
    """Torch threads of the ingest process; 0: half of the cores."""
    qa_threads: int = Field(default=0, ge=0, le=256)
    """Torch threads of the QA process; 0: the other half of the cores."""

    reader_threads: int = Field(default=0, ge=0, le=64)
    """Threads of the QA process that read stored units; 0: two a core, at most 8."""
    read_ahead_threads: int = Field(default=0, ge=0, le=64)
    """Threads that read from disk, while a layer of the model computes, the units it chose for the
    layer after it; 0: none does. For slow disks: where blocks are cached it costs more than it
    saves."""

    sample_fps: float = Field(default=1.0, gt=0, le=30)
    """Frames kept per second of stream time, where a session does not say."""
    window_tokens: int = Field(default=0, ge=0, le=1_000_000)
    """Tokens of the sliding window, where a session does not say; 0: what the model recommends."""
    reorder_tolerance_s: float = Field(default=1.0, ge=0, le=60)
    """How far back a frame's time may jump before it is an error; kept by sessions made so."""
    gap_max_s: float = Field(default=5.0, gt=0)
    """A hole in the stream longer than this is recorded as a gap; kept by sessions made so."""

    reduction: str = "auto"
    """Which visual tokens of new sessions are kept: a policy (none, dtd, dtd_pixel, last_kept,
    budget, key_norm), alone or as policy:preset (light, balanced, aggressive) or
    policy:strength; auto: what was measured with the model, none where nothing was."""
    kv_encoding: Literal["auto", "model", "int8", "int4"] = "auto"
    """How new sessions store keys and values: as the model makes them, or in so many bits; auto:
    what was measured with the model, as it makes them where nothing was."""
    block_tokens: int = Field(default=4096, ge=1)
    """Kept tokens at which a block is closed."""
    block_span_s: float = Field(default=16.0, gt=0)
    """Stream time at which a block is closed: how far the durable mark trails the visible one."""
    hot_tail_bytes: ByteCount = 0
    """Shared memory per live session for its newest units, at least 1 MiB; 0: three full blocks, at
    most 1 GiB. With less than a block, blocks close early."""
    ram_budget_bytes: ByteCount = 0
    """Memory of the RAM tier, at least 1 MiB, which units enter as they leave a hot tail, and
    slices that questions read from the disk. Hot tails and key indexes of pushes, and key indexes
    of sessions that are asked about, are counted in it, and a push whose own do not fit is refused;
    0: there is no such tier, and hot tails are not limited."""
    disk_io: Literal["auto", "direct", "buffered"] = "auto"
    """How blocks are written and slices read. buffered: through the page cache, which then holds
    what was pushed lately; direct: past it, on ext4, xfs and btrfs, for disks that many sessions
    are pushed to; auto: what was measured to be better, which is writing through it unless there is
    a RAM tier, and reading past it what is not in it, the first time."""
    min_free_bytes: ByteCount = 256 * 2**20
    """Space left free on the store's disk; a session is refused rather than fill it."""
    session_budget_bytes: ByteCount = 0
    """Disk that one session may take, its index included, where it has no budget of its own; 0: no
    limit."""
    disk_budget_bytes: ByteCount = 0
    """Disk that everything in `data_dir` may take; 0: no limit."""
    on_full: Literal["refuse", "drop_oldest", "thin"] = "refuse"
    """What happens when a budget, or the disk, is full. refuse: the push ends with STORE_FULL;
    drop_oldest: the oldest video of the session that is pushed is forgotten; thin: its whole length
    stays, and its units lose tokens, those first that are most like what was there before. For the
    store's budget, sessions that nobody pushes to give up their oldest too if their rule is
    drop_oldest. Sessions can have a rule of their own."""
    retain_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Video that is older than this is forgotten, when both the stream's time and the wall clock
    say so, also of sessions that nobody pushes to; a finished one of which nothing is left is
    deleted. 0: none is. Sessions can have an age of their own."""
    budget_high_fraction: float = Field(default=0.95, gt=0, le=1)
    """Share of a budget that video may fill; the rest is a reserve for recovery and the index."""
    budget_low_fraction: float = Field(default=0.85, gt=0, le=1)
    """Share of a budget that stays filled when something is forgotten."""
    scrub_bytes_per_s: ByteCount = 4 * 2**20
    """How fast the ingest process reads the store through in the background for damage; 0: not."""

    max_live_pushes: int = Field(default=64, ge=1)
    """Ingest calls open at the same time."""
    max_open_questions: int = Field(default=64, ge=1)
    """Questions waiting or being answered at the same time."""
    packed_questions: int = Field(default=16, ge=1)
    """Of those, questions that are decoded together; the others wait, sessions in turn."""
    max_lost_fraction: float = Field(default=0.5, ge=0, lt=1)
    """Share of the units a layer chose that an answer may go on without when they are damaged; 0:
    none."""
    credit_items: int = Field(default=64, ge=1, le=4096)
    """Images, packets or chunks that a client may be ahead of the server."""
    units_per_pass: int = Field(default=8, ge=1, le=256)
    """Units of a session encoded in one pass when they wait; never changes what is encoded."""
    drain_s: float = Field(default=10.0, ge=0)
    """Grace between the request to stop and the end of open calls."""
    question_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of a question whose client gives none."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe message that is logged."""

    @field_validator("store_copies", mode="before")
    @classmethod
    def _folders_of(cls, folders: object) -> object:
        if isinstance(folders, str):
            return tuple(Path(folder) for folder in folders.split(":") if folder)
        return folders

    @model_validator(mode="after")
    def _no_copy_is_the_store(self) -> Self:
        store = self.data_dir.resolve()  # it may be named by another path, or by a link
        for folder in self.store_copies:
            if folder.resolve() == store:
                raise ValueError(f"store_copies: {folder} is the store itself")
        return self

    @field_validator("redis_url")
    @classmethod
    def _redis_url_is_one(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return url

    @field_validator("hot_tail_bytes", "ram_budget_bytes")
    @classmethod
    def _memory_is_no_trifle(cls, size_bytes: int) -> int:
        if 0 < size_bytes < 2**20:
            raise ValueError("must be 0 or at least 1048576")
        return size_bytes

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> Self:
        if self.budget_low_fraction > self.budget_high_fraction:
            raise ValueError(
                f"budget_low_fraction {self.budget_low_fraction} must not be above "
                f"budget_high_fraction {self.budget_high_fraction}"
            )
        return self

    def advertised(self, host: str, port: int) -> str:
        """Returns the `host:port` at which others find a server of ours."""
        return f"{self.advertised_host or host}:{port}"

    def threads_of(self, process: Literal["ingest", "qa"]) -> int:
        """Returns the torch threads of a process: as set, else its half of the cores."""
        set_value = self.ingest_threads if process == "ingest" else self.qa_threads
        if set_value:
            return set_value
        cores = len(os.sched_getaffinity(0))
        return max(1, cores - cores // 2 if process == "ingest" else cores // 2)

    def reader_thread_count(self) -> int:
        """Returns the threads that read stored units: as set, else what keeps a disk busy."""
        return self.reader_threads or min(8, 2 * len(os.sched_getaffinity(0)))


def as_environment(settings: Settings) -> dict[str, str]:
    """Returns the variables from which `read_settings` makes these settings, in any folder."""
    values = settings.model_dump(exclude_none=True)
    return {f"{ENV_PREFIX}{name.upper()}": _as_text(value) for name, value in values.items()}


def _as_text(value: object) -> str:
    if isinstance(value, tuple):
        return ":".join(map(_as_text, value))
    return str(value.absolute() if isinstance(value, Path) else value)


def read_settings(**overrides: object) -> Settings:
    """Reads settings from the environment; `overrides` that are not None win.

    Raises:
        ConfigError: a setting is unknown or does not fit.
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(
        name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known
    )
    if unknown:
        raise ConfigError(f"unknown settings in the environment: {', '.join(unknown)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError("; ".join(map(_spoken, error.errors()))) from error


def _spoken(error: ErrorDetails) -> str:
    """Returns what is wrong with a setting: its name, the rule, and what was given, once."""
    # Of a check of ours the words; of several settings together they name them.
    rule = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    if not error["loc"]:
        return rule
    name, given = ".".join(map(str, error["loc"])), error["input"]
    shown = repr(str(given) if isinstance(given, Path) else given)
    return f"{name}: {rule}" if shown in rule else f"{name}: {rule}, got {shown}"
