"""Settings: what fits is taken, what does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from svc.config import ConfigError, Settings, as_environment, read_settings


@pytest.mark.parametrize("size_bytes", [0, 2**20, 2**30])
def test_a_hot_tail_is_the_stores_choice_or_has_a_useful_size(size_bytes: int) -> None:
    assert read_settings(hot_tail_bytes=size_bytes).hot_tail_bytes == size_bytes


@pytest.mark.parametrize("size_bytes", [-1, 1, 2**20 - 1])
def test_a_hot_tail_that_is_a_trifle_is_refused(size_bytes: int) -> None:
    with pytest.raises(ConfigError, match="hot_tail_bytes"):
        read_settings(hot_tail_bytes=size_bytes)


def test_copies_of_the_store_are_folders_with_colons_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert read_settings().store_copies == ()
    monkeypatch.setenv("LOOKBACK_STORE_COPIES", "/backup/lookback:replica")
    assert read_settings().store_copies == (Path("/backup/lookback"), Path("replica"))


def test_the_store_is_no_copy_of_itself() -> None:
    with pytest.raises(ConfigError, match="store_copies"):
        read_settings(data_dir="store", store_copies="backup:store")


@pytest.mark.parametrize("other", ["absolute", "link", "roundabout"])
def test_the_store_is_no_copy_of_itself_by_another_path(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store")
    copy = {"absolute": str(tmp_path / "store"), "link": "link", "roundabout": "link/../store"}
    with pytest.raises(ConfigError, match="store_copies"):
        read_settings(data_dir="store", store_copies=f"backup:{copy[other]}")
    assert read_settings(data_dir="store", store_copies="backup").store_copies == (Path("backup"),)


@pytest.mark.parametrize("name", [n for n in Settings.model_fields if "_bytes" in n])
def test_every_size_is_read_as_people_write_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, size_bytes in (("4MiB", 2**22), ("4194304", 2**22), ("0", 0)):
        monkeypatch.setenv(f"LOOKBACK_{name.upper()}", text)
        assert getattr(read_settings(), name) == size_bytes
    for text in ("4MB", "-1", ""):
        monkeypatch.setenv(f"LOOKBACK_{name.upper()}", text)
        with pytest.raises(ConfigError, match=name):
            read_settings()


def test_settings_written_to_an_environment_are_read_back_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = read_settings(
        data_dir="store",
        store_copies="a:/b",
        shm_dir="shm",
        redis_url="redis://somewhere",
        session_budget_bytes=2**30,
        on_full="thin",
        retain_s=1.5,
    )
    whole = changed.model_copy(
        update={
            "data_dir": tmp_path / "store",
            "store_copies": (tmp_path / "a", Path("/b")),
            "shm_dir": tmp_path / "shm",
        }
    )
    for settings, expected in ((read_settings(), None), (changed, whole)):
        for name, value in as_environment(settings).items():
            monkeypatch.setenv(name, value)
        again = read_settings()
        if expected is None:
            expected = settings.model_copy(update={"data_dir": tmp_path / settings.data_dir})
        assert again == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"data_dir": Path("m4"), "store_copies": "m4"},
            "store_copies: m4 is the store itself",
        ),
        (
            {"ram_budget_bytes": "64MB"},
            "ram_budget_bytes: '64MB' is not a size: give bytes, or as 500MiB or 2GiB",
        ),
        (
            {"redis_url": "localhost"},
            "redis_url: must start with redis://, rediss:// or unix://, got 'localhost'",
        ),
        ({"drain_s": -1}, "drain_s: Input should be greater than or equal to 0, got -1"),
        (
            {"budget_low_fraction": 0.99},
            "budget_low_fraction 0.99 must not be above budget_high_fraction 0.95",
        ),
    ],
)
def test_what_is_wrong_is_said_once_and_in_words(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"\A{said}\Z"):
        read_settings(**given)


def test_all_that_is_wrong_is_said_together() -> None:
    with pytest.raises(ConfigError, match=r"\Aingest_port: .*got 70000; drain_s: .*got -1\Z"):
        read_settings(ingest_port=70000, drain_s=-1)
