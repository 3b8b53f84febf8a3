"""What the commands print, where, and with which exit status."""

from __future__ import annotations

import datetime
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lookback.v1 import question_pb2
from svc.amounts import parse_bytes
from svc.cli.amounts import parse_budget_bytes, parse_duration_s
from svc.cli.failures import EXIT_USAGE
from svc.cli.main import app
from svc.cli.session_rules import over_budget
from svc.cli.session_view import print_table
from svc.cli.times import format_time, parse_time_s
from svc.client import (
    OnFull,
    RulesInForce,
    Session,
    SessionSettings,
    SessionState,
    SessionStats,
)
from svc.rpc.errors import Reason, RequestError
from svc.supervisor import StartError
from tests.svc.cli.conftest import Lookback, Service
from tests.svc.client.material import one_answer
from tests.svc.client.protocol_server import StoredSession

NOBODY = ["--ingest-address", "127.0.0.1:1", "--qa-address", "127.0.0.1:1"]
COMMANDS: tuple[list[str], ...] = (
    [],
    ["serve"],
    ["ingest"],
    ["qa"],
    ["push"],
    ["ask"],
    ["sessions"],
    ["sessions", "list"],
    ["sessions", "show"],
    ["sessions", "create"],
    ["sessions", "update"],
    ["sessions", "pin"],
    ["sessions", "unpin"],
    ["sessions", "finish"],
    ["sessions", "delete"],
    ["bench", "store"],
    ["store"],
    ["store", "export"],
    ["store", "import"],
    ["store", "repair"],
    ["store", "scrub"],
    ["store", "stat"],
    ["store", "verify"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_every_option_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "400"})
    assert result.exit_code == 0
    rows = [line for line in result.output.splitlines() if "--" in line and line.startswith("│")]
    for row in rows:
        words = row.strip("│ ").split("  ")
        assert words[-1].strip()[0].isupper() or ":" in words[-1] or "`" in words[-1], row


def test_the_version_is_that_of_the_package(lookback: type[Lookback]) -> None:
    outcome = lookback.run("--version")
    assert outcome.status == 0
    assert outcome.out.startswith("lookback 0.")


def test_an_answer_as_json_is_one_object_with_exactly_these_fields(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["hall"] = StoredSession()
    outcome = lookback.run("ask", "hall", "What?", "--json", *service.options)
    assert outcome.status == 0
    assert outcome.err == ""
    assert json.loads(outcome.out) == {
        "session": "hall",
        "question": "What?",
        "asked_at_s": 62.0,
        "answer": "A red circle.",
        "evidence": [
            {
                "start_s": 12.0,
                "end_s": 15.0,
                "score": 0.75,
                "tier": "disk",
                "coarsened": False,
            },
            {
                "start_s": 61.5,
                "end_s": 62.5,
                "score": 0.125,
                "tier": "hot",
                "coarsened": False,
            },
        ],
        "evidence_lost": [],
        "evidence_coarsened": [],
        "evidence_until_s": 62.0,
        "remembers_from_s": None,
        "retrieved_unit_count": 8,
        "retrieved_token_count": 288,
        "prompt_token_count": 310,
        "history_turn_count": 0,
        "ttft_s": 0.25,
        "total_s": 0.5,
        "model": "tiny@0123abcd",
    }


def test_with_choices_the_object_also_names_the_choice(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["hall"] = StoredSession()
    outcome = lookback.run(
        "ask", "hall", "Which?", "--choice", "a", "--choice", "b", "--json", *service.options
    )
    fields = json.loads(outcome.out)
    assert fields["choice_index"] == 1
    assert fields["choice_log_likelihoods"] == [-1.0, -2.0]
    assert len(fields) == 18


def test_an_answer_for_people_is_its_text_and_the_moments(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["hall"] = StoredSession()
    outcome = lookback.run("ask", "hall", "What?", "--at", "1:02", *service.options)
    assert outcome.out.startswith("A red circle.\n\nrests on\n  0:12.0 - 0:15.0")
    assert "1:01.5 - 1:02.5" in outcome.out
    assert service.server.asked[-1].asked_at_s == 62.0


def test_a_question_beyond_the_end_is_told_where_the_video_ended(
    lookback: type[Lookback], service: Service
) -> None:
    stored = service.server.sessions["hall"] = StoredSession(durable=[0.0, 62.0], finished=True)
    for more in ([], ["--json"]):
        ask = ["ask", "hall", "What?", *more, *service.options]
        outcome = lookback.run(*ask, "--at", "2:00")
        assert outcome.status == 0
        assert outcome.err == (
            "note: the video ended at 1:02.0, before 2:00.0: this is the answer as of its end\n"
        )
        for when in ([], ["--at", "1:02"], ["--at", "1:02.4"]):  # a frame lasts half a second
            assert lookback.run(*ask, *when).err == ""
    stored.finished = False
    assert lookback.run(*ask, "--at", "2:00").err == ""


def lossy_answer(request: question_pb2.AskRequest) -> Iterator[question_pb2.AskResponse]:
    """An answer that had to do without two moments."""
    *deltas, last = one_answer(request)
    for start_s, count, reason in ((3.0, 2, 1), (70.0, 1, 2)):
        last.answer.evidence_lost.add(
            start_s=start_s,
            end_s=start_s + count,
            first_unit_index=int(start_s),
            unit_count=count,
            reason=reason,
            first_layer_index=1,
        )
    yield from (*deltas, last)


def test_what_an_answer_lost_is_a_warning_and_part_of_the_object(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["hall"] = StoredSession()
    service.server.answer = lossy_answer
    outcome = lookback.run("ask", "hall", "What?", *service.options)
    assert outcome.status == 0
    assert outcome.err == (
        "warning: 3 damaged units were left out of this answer: "
        "0:03.0 - 0:05.0 (checksum), 1:10.0 - 1:11.0 (unreadable)\n"
    )
    outcome = lookback.run("ask", "hall", "What?", "--json", *service.options)
    assert json.loads(outcome.out)["evidence_lost"][1] == {
        "start_s": 70.0,
        "end_s": 71.0,
        "first_unit_index": 70,
        "unit_count": 1,
        "reason": "unreadable",
        "first_layer_index": 1,
    }


def coarse_answer(request: question_pb2.AskRequest) -> Iterator[question_pb2.AskResponse]:
    """An answer that rests on a moment of which some tokens are left."""
    *deltas, last = one_answer(request)
    last.answer.evidence[0].coarsened = True
    last.answer.evidence_coarsened.add(
        start_s=12.0,
        end_s=15.0,
        first_unit_index=24,
        unit_count=6,
        token_count=72,
        whole_token_count=216,
    )
    yield from (*deltas, last)


def test_what_was_thinned_since_is_said_in_words_and_part_of_the_object(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["hall"] = StoredSession()
    service.server.answer = coarse_answer
    outcome = lookback.run("ask", "hall", "What?", *service.options)
    assert "0:12.0 - 0:15.0       score 0.750  disk  thinned since\n" in outcome.out
    assert "seen only in part, for it was thinned since" in outcome.out
    assert "0:12.0 - 0:15.0       72 of 216 tokens left\n" in outcome.out
    outcome = lookback.run("ask", "hall", "What?", "--json", *service.options)
    fields = json.loads(outcome.out)
    assert [moment["coarsened"] for moment in fields["evidence"]] == [True, False]
    assert fields["evidence_coarsened"] == [
        {
            "start_s": 12.0,
            "end_s": 15.0,
            "first_unit_index": 24,
            "unit_count": 6,
            "token_count": 72,
            "whole_token_count": 216,
        }
    ]


def test_options_before_and_after_the_command_lead_to_the_same_service(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["hall"] = StoredSession()
    assert lookback.run(*service.options, "ask", "hall", "What?").status == 0
    assert lookback.run(*NOBODY, "ask", "hall", "What?", *service.options).status == 0
    assert lookback.run(*service.options, "ask", "hall", "What?", *NOBODY).status == 1


def test_the_settings_say_where_the_service_is_when_nothing_else_does(
    lookback: type[Lookback], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.server.sessions["hall"] = StoredSession()
    port = service.address.rpartition(":")[2]
    monkeypatch.setenv("LOOKBACK_INGEST_PORT", port)
    monkeypatch.setenv("LOOKBACK_QA_PORT", port)
    assert lookback.run("ask", "hall", "What?", "--json").status == 0
    assert lookback.run("ask", "hall", "What?", "--json", "--server", "localhost").status == 0


def test_every_option_of_ask_arrives(lookback: type[Lookback], service: Service) -> None:
    service.server.sessions["hall"] = StoredSession()
    outcome = lookback.run(
        *("ask", "hall", "What?", "--at", "5", "--before", "--json"),
        *("--units", "7", "--recent", "0", "--tokens", "99", "--retrieval", "agreed"),
        "--each-token",
        *("--max-new-tokens", "3", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "4"),
        *("--repetition-penalty", "1.5", "--seed", "11", "--stop", "x", "--stop", "y"),
        *service.options,
    )
    assert outcome.status == 0
    asked = service.server.asked[-1]
    assert asked.cut == 2
    retrieval, decoding = asked.retrieval, asked.decoding
    assert (retrieval.unit_count, retrieval.recent_unit_count) == (7, 0)
    assert (retrieval.token_count, retrieval.mode) == (99, 3)
    assert retrieval.search_each_token
    assert (decoding.max_new_token_count, decoding.top_k, decoding.seed) == (3, 4, 11)
    assert (decoding.temperature, decoding.top_p) == (0.5, 0.9)
    assert decoding.repetition_penalty == 1.5
    assert list(decoding.stop) == ["x", "y"]


def test_a_conversation_is_sent_along_and_kept(
    lookback: type[Lookback], service: Service, tmp_path: Path
) -> None:
    service.server.sessions["hall"] = StoredSession()
    file = tmp_path / "talk.json"
    for question in ("What?", "And before?"):
        outcome = lookback.run("ask", "hall", question, "--history", str(file), *service.options)
        assert outcome.status == 0
    assert [turn.question for turn in service.server.asked[-1].history] == ["What?"]
    assert "with 1 earlier turn; seen up to" in outcome.out
    assert json.loads(file.read_text()) == [
        {"question": "What?", "answer": "A red circle.", "evidence_until_s": 62.0},
        {"question": "And before?", "answer": "A red circle.", "evidence_until_s": 62.0},
    ]


def test_a_conversation_kept_in_a_file_tells_an_earlier_time_nothing_of_later_video(
    lookback: type[Lookback], service: Service, tmp_path: Path
) -> None:
    service.server.sessions["hall"] = StoredSession()
    file = tmp_path / "talk.json"
    turns = [{"question": "a", "answer": "b", "evidence_until_s": t} for t in (1, 9.5, None)]
    file.write_text(json.dumps([*turns, {"question": "written", "answer": "by hand"}]))
    history = ("--history", str(file), *service.options)
    outcome = lookback.run("ask", "hall", "What?", "--at", "9", *history)
    assert outcome.status == 0
    sent = service.server.asked[-1].history
    assert [(t.evidence_until_s, t.HasField("evidence_until_s")) for t in sent] == [
        (1.0, True),
        (0.0, False),
        (0.0, False),
    ]
    assert outcome.err.startswith("note: 1 of 4 earlier turns left out: they saw later video")


@pytest.mark.parametrize(
    "text",
    [
        '{"question": 1}',
        '[{"question": "a"}]',
        '[{"question": "a", "answer": "b", "evidence_until_s": "1"}]',
        '[{"question": "a", "answer": "b", "evidence_until_s": NaN}]',
        f'[{{"question": "a", "answer": "b", "evidence_until_s": 1{"0" * 400}}}]',
        '[{"question": "\\ud800", "answer": "b"}]',
        "[" * 100_000,
        '[{"question": "a", "answer": "b", "other": 1}]',
        "[1]",
        "not json",
    ],
)
def test_a_file_that_is_no_conversation_is_refused_and_left_as_it_is(
    lookback: type[Lookback], service: Service, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    outcome = lookback.run("ask", "hall", "And?", "--history", str(file), *service.options)
    assert outcome.status == 1
    assert outcome.err.startswith("error: HISTORY_INVALID: ")
    assert file.read_text() == text
    assert not service.server.asked


@pytest.mark.parametrize(
    ("reason", "values", "told"),
    [
        (Reason.ASKED_AT_NOT_RECEIVED, {"received_pts_s": 359.0}, "come up to 5:59.0 so far"),
        (Reason.ASKED_AT_BEFORE_START, {"first_pts_s": 6000.5}, "from 1:40:00.5 on"),
    ],
)
def test_a_time_outside_the_video_is_told_beside_what_there_is(
    lookback: type[Lookback],
    service: Service,
    reason: Reason,
    values: dict[str, float],
    told: str,
) -> None:
    service.server.refuse = RequestError(reason, "in seconds", asked_at_s=5940.0, **values)
    outcome = lookback.run("ask", "hall", "What?", "--at", "99:00", *service.options)
    assert outcome.status == 1
    assert outcome.err.startswith(f"error: {reason.name}: --at 1:39:00.0 lies outside the video: ")
    assert told in outcome.err


def test_a_file_that_is_not_there_is_named_and_why_in_words(
    lookback: type[Lookback], tmp_path: Path
) -> None:
    missing = tmp_path / "cam.tar"
    outcome = lookback.run("store", "import", str(missing), str(tmp_path / "store"))
    assert outcome.status == 1
    assert outcome.err == f"error: FILE_NOT_FOUND: '{missing}': no such file or directory\n"


def test_sessions_are_listed_shown_and_deleted(lookback: type[Lookback], service: Service) -> None:
    service.server.sessions = {name: StoredSession(durable=[0.0, 61.0]) for name in "abc"}
    listed = lookback.run("sessions", "list", *service.options)
    assert listed.status == 0
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["a", "b", "c"]
    as_json = json.loads(lookback.run("sessions", "list", "--json", *service.options).out)
    assert [session["session"] for session in as_json] == ["a", "b", "c"]
    shown = lookback.run("sessions", "show", "b", "--json", *service.options)
    assert json.loads(shown.out) == as_json[1]
    assert as_json[1]["stats"]["last_visible_pts_s"] == 61.0
    assert "0:00.0 - 1:01.0" in lookback.run("sessions", "show", "b", *service.options).out
    assert lookback.run("sessions", "delete", "b", "--yes", *service.options).status == 0
    assert sorted(service.server.sessions) == ["a", "c"]
    gone = lookback.run("sessions", "show", "b", *service.options)
    assert gone.status == 1
    assert gone.err == "error: SESSION_NOT_FOUND: no session 'b'\n"


def test_a_damaged_session_is_not_listed_as_an_empty_one(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions = {
        "bad": StoredSession(durable=[0.0, 61.0], damaged=True),
        "empty": StoredSession(),
    }
    listed = lookback.run("sessions", "list", *service.options)
    bad, empty = (line.split() for line in listed.out.splitlines()[1:])
    assert bad[:5] == ["bad", "live", "damaged", "?", "?"]
    assert empty[2:4] == ["nothing", "0"]
    as_json = json.loads(lookback.run("sessions", "list", "--json", *service.options).out)
    assert as_json[0]["stats"] is None
    assert as_json[1]["stats"]["visible_unit_count"] == 0
    shown = lookback.run("sessions", "show", "bad", *service.options)
    assert shown.status == 0
    assert "damaged" in shown.out
    assert "nothing" not in shown.out
    pinned = lookback.run("sessions", "pin", "bad", "0", "5", *service.options)
    assert (pinned.status, pinned.err) == (0, "note: which video there is cannot be read now\n")
    finished = lookback.run("sessions", "finish", "bad", *service.options)
    assert finished.out == "finished bad: what it holds cannot be read\n"


def test_a_list_on_a_narrow_terminal_leaves_nothing_of_the_names_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    stats = SessionStats(
        visible_unit_count=43_210,
        durable_unit_count=43_210,
        first_pts_s=0.0,
        last_visible_pts_s=340_000.0,
        last_durable_pts_s=340_000.0,
        token_count=1,
        disk_bytes=12_345_678_900,
        gap_count=0,
        dropped_unit_count=0,
    )
    ids, names = ["front-door", "x" * 31 + "y" * 32], ["Yard", "Front door of the old building"]
    print_table(
        [
            Session(
                session_id=session_id,
                display_name=name,
                state=SessionState.FINISHED,
                create_time=datetime.datetime.now(datetime.UTC),
                settings=SessionSettings(),
                stats=stats,
                model="tiny",
            )
            for session_id, name in zip(ids, names, strict=True)
        ]
    )
    plain = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert max(map(len, plain.splitlines())) <= 80
    rows = [(line[:20].strip(), line[68:].strip()) for line in plain.splitlines()[1:]]
    assert "".join(row[0] for row in rows) == "".join(ids)
    assert " ".join(row[1] for row in rows if row[1]) == " ".join(names)
    assert plain.count("0:00.0 - 94:26:40.0") == 2


def test_a_session_that_was_left_live_is_finished_once(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions = {"a": StoredSession(durable=[0.0, 61.0]), "b": StoredSession()}
    finished = lookback.run("sessions", "finish", "a", *service.options)
    assert (finished.status, finished.err) == (0, "")
    assert finished.out == "finished a: 0:00.0 - 1:01.0, 2 units\n"
    as_json = json.loads(lookback.run("sessions", "finish", "b", "--json", *service.options).out)
    assert (as_json["session"], as_json["state"]) == ("b", "finished")
    again = lookback.run("sessions", "finish", "a", *service.options)
    assert (again.status, again.out) == (1, "")
    assert again.err == "error: SESSION_FINISHED: the session is finished\n"
    unknown = lookback.run("sessions", "finish", "c", *service.options)
    assert unknown.err == "error: SESSION_NOT_FOUND: no session 'c'\n"


def test_rules_are_said_when_a_session_is_made_changed_and_shown(
    lookback: type[Lookback], service: Service
) -> None:
    rules = ["--budget", "2GiB", "--on-full", "drop_oldest", "--retain", "7d"]
    made = lookback.run("sessions", "create", "yard", "--fps", "2", *rules, *service.options)
    assert (made.status, made.out, made.err) == (0, "made yard\n", "")
    stored = service.server.sessions["yard"].keeping
    assert (stored.session_budget_bytes, stored.on_full, stored.retain_s) == (2**31, 2, 604_800.0)
    shown = lookback.run("sessions", "show", "yard", *service.options).out
    assert "budget       2,048.0 MiB, as said for this session\n" in shown
    assert "when full    drop_oldest, as said for this session\n" in shown
    assert "kept         7 d, as said for this session\n" in shown
    changes = ["--retain", "forever", "--on-full", "default", "--name", "Yard"]
    changed = lookback.run("sessions", "update", "yard", *changes, "--json", *service.options)
    fields = json.loads(changed.out)
    assert fields["keeping"] == {
        "session_budget_bytes": 2**31,
        "on_full": None,
        "retain_s": "forever",
    }
    assert fields["keeping_in_force"]["on_full"] == "refuse"
    assert fields["display_name"] == "Yard"
    assert "when full    refuse, as for all" in (
        lookback.run("sessions", "show", "yard", *service.options).out
    )


def test_a_push_says_the_rules_of_the_session_that_it_makes(
    lookback: type[Lookback], service: Service, clip: Path
) -> None:
    pushed = lookback.run(
        *("push", str(clip), "--session", "s", "--budget", "500MiB", "--retain", "12h"),
        *service.options,
    )
    assert pushed.status == 0
    stored = service.server.sessions["s"].keeping
    assert (stored.session_budget_bytes, stored.on_full) == (500 * 2**20, 0)
    assert stored.retain_s == 43_200.0


def test_spans_are_pinned_by_times_as_people_write_them_and_unpinned(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["yard"] = StoredSession()
    pinned = lookback.run("sessions", "pin", "yard", "0:24", "1:02:03.5", *service.options)
    assert (pinned.status, pinned.err) == (0, "")
    assert pinned.out == "pinned 0:24.0 - 1:02:03.5 of yard\n"
    assert service.server.sessions["yard"].pinned == [(24.0, 3723.5)]
    shown = lookback.run("sessions", "show", "yard", *service.options).out
    assert "pinned       0:24.0 - 1:02:03.5\n" in shown
    service.server.thinned_unit_count = 5
    again = lookback.run("sessions", "pin", "yard", "1", "2", "--json", *service.options)
    fields = json.loads(again.out)
    assert fields["thinned_unit_count"] == 5
    assert fields["pinned_spans"][1] == {"start_s": 1.0, "end_s": 2.0}
    told = lookback.run("sessions", "pin", "yard", "3", "4", *service.options)
    assert told.err.startswith("note: 5 units of it had been thinned before")
    gone = lookback.run("sessions", "unpin", "yard", "1", "2", *service.options)
    assert gone.out == "unpinned 0:01.0 - 0:02.0 of yard\n"
    never = lookback.run("sessions", "unpin", "yard", "1", "2", *service.options)
    assert (never.status, never.out) == (0, "nothing is pinned in 0:01.0 - 0:02.0 of yard\n")
    assert service.server.sessions["yard"].pinned == [(24.0, 3723.5), (3.0, 4.0)]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 2**20), ("1KiB", 2**10), ("2.5 gib", 5 * 2**29)],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(("text", "size"), [("default", 0), ("0", 0), ("1MiB", 2**20)])
def test_a_budget_is_a_size_or_the_servers(text: str, size: int) -> None:
    assert parse_budget_bytes(text) == size


def test_the_least_budget_is_the_same_in_help_and_refusal(lookback: type[Lookback]) -> None:
    refused = lookback.run("sessions", "update", "yard", "--budget", "1", *NOBODY)
    assert refused.status == 2
    assert "at least 1MiB, or `default`" in refused.err
    shown = " ".join(lookback.run("sessions", "update", "--help").out.replace("│", " ").split())
    assert "1MiB, or `default`" in re.sub(r" --\S+ \S+ ", " ", shown)


@pytest.mark.parametrize("text", ["", "1MB", "-1", "MiB", "1e6", "nan", "1 MiB x"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        *(("0", 0.0), ("1.5", 1.5), ("90s", 90.0), ("30m", 1800.0), ("12 h", 43_200.0)),
        *(("7D", 604_800.0), ("forever", math.inf), ("default", 0.0)),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str, duration_s: float) -> None:
    assert parse_duration_s(text) == duration_s


@pytest.mark.parametrize("text", ["", "-1", "inf", "1w", "1:30", "nan"])
def test_a_duration_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration_s(text)


def test_a_session_is_not_finished_under_its_pusher(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.sessions["a"] = StoredSession()
    service.server.busy = True
    outcome = lookback.run("sessions", "finish", "a", *service.options)
    assert outcome.status == 1
    assert outcome.err.startswith("error: SESSION_BUSY: it has an open call: end that push")
    assert not service.server.sessions["a"].finished


def test_a_time_before_0_is_no_option(lookback: type[Lookback], service: Service) -> None:
    service.server.sessions["yard"] = StoredSession()
    for command in ("pin", "unpin"):
        outcome = lookback.run("sessions", command, "yard", "-1:05", "-5", *service.options)
        assert outcome.out == f"{command}ned -1:05.0 - -0:05.0 of yard\n"
    wrong = lookback.run("sessions", "pin", "yard", "--jsn", "5", *service.options)
    assert (wrong.status, "'--jsn' is not a time" in wrong.err) == (2, True)


def test_who_is_to_be_asked_about_a_deletion_hears_first_that_there_is_nothing(
    lookback: type[Lookback], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - closed with the process
    outcome = lookback.run("sessions", "delete", "nosuch", *service.options)
    assert outcome.status == 1
    assert outcome.err.startswith("error: SESSION_NOT_FOUND: ")


@pytest.mark.parametrize(
    ("on_full", "finished", "told"),
    [
        ("drop_oldest", True, "its oldest segments go within a minute"),
        ("drop_oldest", False, "its oldest segments go within a minute"),
        ("thin", True, "nothing goes under `thin`"),
        ("thin", False, "is thinned when it is pushed to again"),
        ("refuse", True, "nothing goes under `refuse`"),
        ("refuse", False, "what is pushed to it is refused"),
    ],
)
def test_what_becomes_of_a_session_beyond_its_new_budget_is_said(
    on_full: str, finished: bool, told: str
) -> None:
    session = Session(
        session_id="yard",
        display_name="",
        state=SessionState.FINISHED if finished else SessionState.LIVE,
        create_time=datetime.datetime.now(datetime.UTC),
        settings=SessionSettings(sample_fps=1.0),
        stats=SessionStats(
            visible_unit_count=1,
            durable_unit_count=1,
            first_pts_s=0.0,
            last_visible_pts_s=1.0,
            last_durable_pts_s=1.0,
            token_count=1,
            disk_bytes=2**21,
            gap_count=0,
            dropped_unit_count=0,
        ),
        model="m",
        keeping_in_force=RulesInForce(
            session_budget_bytes=2**20, on_full=OnFull(on_full), retain_s=0.0
        ),
    )
    assert told in over_budget(session)
    assert over_budget(replace(session, stats=replace(session.stats, disk_bytes=2**20))) == ""
    assert "cannot be read" in over_budget(replace(session, stats=None))


def test_a_delete_that_nobody_can_confirm_is_not_done(
    lookback: type[Lookback], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.server.sessions["a"] = StoredSession()
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - closed with the process
    assert lookback.run("sessions", "delete", "a", *service.options).status == 2
    assert "a" in service.server.sessions


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "s", "q"],
        ["sessions", "list"],
        ["sessions", "show", "s"],
        ["sessions", "finish", "s"],
        ["sessions", "delete", "s", "--yes"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_nobody_there_is_said_with_the_address_and_what_to_do(
    lookback: type[Lookback], arguments: list[str]
) -> None:
    outcome = lookback.run(*arguments, *NOBODY)
    assert outcome.status == 1
    assert outcome.out == ""
    assert outcome.err == (
        "error: UNREACHABLE: no server answers at 127.0.0.1:1; "
        "start one with: lookback serve --data DIR, and wait until it says that it serves: "
        "for its first seconds it does not listen yet\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["ask"],
        ["ask", "s", "q", "--at", "1:75"],
        ["ask", "s", "q", "--before"],
        ["ask", "s", "q", "--units", "0"],
        ["ask", "s", "q", "--unit-index", "3", "--units", "4"],
        ["ask", "s", "q", "--qa-address", "here"],
        ["push", "x.mp4"],
        ["push", "-", "--session", "s", "--speed", "1"],
        ["push", "x.mp4", "--session", "s", "--fps", "2", "--no-create"],
        ["push", "-", "--session", "s", "--join"],
        ["push", "x.mp4", "--session", "s", "--retain", "7d", "--no-create"],
        ["push", "x.mp4", "--session", "s", "--budget", "much"],
        ["sessions", "update", "s"],
        ["sessions", "update", "s", "--on-full", "explode"],
        ["sessions", "pin", "s", "1"],
        ["sessions", "pin", "s", "1:75", "2"],
        ["serve", "--data", "d", "--qa-port", "70000"],
        ["serve", "--data", "d", "--log-level", "LOUD"],
        ["serve", "--data", "d", "--ingest-port", "50999", "--qa-port", "50999"],
        ["qa", "--data", "d", "--log-level", "LOUD"],
        ["serve", "--data", "d", "--model", "pyproject.toml"],
        ["serve", "--data", "d", "--model", "weights/model.safetensors"],
        ["ingest", "--data", "d", "--model", "./no-such-folder"],
        ["qa", "--data", "d", "--model", "models/llava/7b"],
        ["store", "verify", "no/such/folder"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_usage_is_one_line_and_status_2(
    lookback: type[Lookback], arguments: list[str]
) -> None:
    outcome = lookback.run(*arguments)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--ingest-port", "5", "--qa-port", "5"], "--ingest-port and --qa-port must"),
        (["serve", "--log-level", "LOUD"], "--log-level: Input should be"),
        (["serve", "--model", "pyproject.toml"], "--model 'pyproject.toml' is a file; give the"),
        (["ingest", "--dtype", "int3"], "--dtype: Input should be"),
        (["qa", "--model", "./log_level"], "--model './log_level' is no folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_setting_is_named_as_it_was_given(
    lookback: type[Lookback],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    outcome = lookback.run(*arguments, "--data", "d")
    assert outcome.err.startswith(f"error: CONFIG: {said}")
    monkeypatch.setenv("LOOKBACK_LOG_LEVEL", "LOUD")
    outcome = lookback.run("serve", "--data", "d")
    assert outcome.err.startswith("error: CONFIG: log_level: ")


def test_a_folder_that_cannot_be_used_is_named_by_the_option(
    lookback: type[Lookback], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    outcome = lookback.run("ingest", "--data", str(tmp_path / "file" / "store"))
    assert outcome.status == EXIT_USAGE
    assert outcome.err.startswith(f"error: CONFIG: --data {tmp_path}/file/store cannot be used")


def test_a_setting_that_a_process_refuses_is_named_as_it_was_given_too(
    lookback: type[Lookback], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def refused(*arguments: object, **options: object) -> int:
        raise StartError(["data_dir d cannot be used", "window_tokens is too much"], 2)

    monkeypatch.setattr("svc.supervisor.serve", refused)
    outcome = lookback.run("serve", "--data", str(tmp_path))
    assert outcome.status == 2
    said = "error: CANNOT_START: --data d cannot be used; window_tokens is too much\n"
    assert outcome.err == said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("asked_at_s must be finite, got inf", "--at must be finite, got inf"),
        ("choices must be at least 2, got 1", "--choice must be at least 2, got 1"),
        ("choices[3] must be short, got 'top_k'", "--choice must be short, got 'top_k'"),
        (
            "the newest takes more than token_count allows",
            "the newest takes more than --tokens allows",
        ),
        ("seed must be >= 0, got -1: stop", "--seed must be >= 0, got -1: stop"),
        ("recent_unit_count must be <= unit_count", "--recent must be <= --units"),
    ],
)
def test_a_refused_field_is_named_as_the_option_that_was_typed(
    lookback: type[Lookback], service: Service, message: str, said: str
) -> None:
    service.server.refuse = RequestError(Reason.INVALID_REQUEST, message)
    outcome = lookback.run("ask", "s", "q", *service.options)
    assert outcome.err == f"error: INVALID_REQUEST: {said}\n"


def test_a_rate_that_does_not_fit_is_named_as_the_option(
    lookback: type[Lookback], service: Service, clip: Path
) -> None:
    service.server.refuse = RequestError(
        Reason.SESSION_EXISTS, "session 's' exists with sample_fps 1.0, got 3.0"
    )
    outcome = lookback.run("push", str(clip), "--session", "s", "--fps", "3", *service.options)
    assert outcome.err == "error: SESSION_EXISTS: session 's' exists with --fps 1.0, got 3.0\n"


def test_a_refusal_that_may_pass_says_when_to_try_again(
    lookback: type[Lookback], service: Service
) -> None:
    service.server.refuse = RequestError(Reason.TOO_MANY_CALLS, "64 questions are open")
    outcome = lookback.run("ask", "s", "q", *service.options)
    assert outcome.err == "error: TOO_MANY_CALLS: 64 questions are open (try again in 1 s)\n"


def test_a_folder_that_is_no_store_is_not_called_sound(
    lookback: type[Lookback], tmp_path: Path
) -> None:
    outcome = lookback.run("store", "verify", str(tmp_path))
    assert outcome.status == 1
    assert outcome.err.startswith("error: STORE_NOT_FOUND: ")


def test_text_of_others_cannot_command_the_terminal(
    lookback: type[Lookback], service: Service
) -> None:
    from lookback.v1 import question_pb2

    def hostile(request: question_pb2.AskRequest) -> list[question_pb2.AskResponse]:
        return [
            question_pb2.AskResponse(delta=question_pb2.TextDelta(text="a\x1b[2Jb\n")),
            *one_answer_of(request),
        ]

    from tests.svc.client.material import one_answer as one_answer_of

    service.server.sessions["s"] = StoredSession()
    service.server.answer = hostile  # type: ignore[assignment]
    assert "\x1b" not in lookback.run("ask", "s", "q", *service.options).out


@settings(deadline=None)
@given(st.integers(-(10**7), 10**7))
def test_a_time_that_is_written_is_read_back(tenths: int) -> None:
    assert parse_time_s(format_time(tenths / 10)) == pytest.approx(tenths / 10, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        *(("0", 0.0), ("75.5", 75.5), ("1:15.5", 75.5), ("0:01:15", 75.0), ("2:00:00", 7200.0)),
        ("99:00", 5940.0),
    ],
)
def test_times_are_read_as_people_write_them(text: str, time_s: float) -> None:
    assert parse_time_s(text) == time_s


@pytest.mark.parametrize("text", ["", "x", "1:60", "1:60:00", "1:2:3:4", "nan", "inf", "1:"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_time_s(text)


@pytest.mark.parametrize(
    "command", [["sessions", "show", b"caf\xe9"], ["ask", "hall", "What?", "--choice", b"\xe9"]]
)
def test_an_argument_that_is_not_utf_8_is_refused_in_one_line(command: list[str | bytes]) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "svc.cli", *command, *NOBODY], capture_output=True, check=False
    )
    assert outcome.returncode == EXIT_USAGE
    assert outcome.stderr.startswith(b"error: NOT_UTF8: ")
    assert outcome.stderr.count(b"\n") == 1


def test_a_server_whose_name_nobody_knows_does_not_answer(lookback: type[Lookback]) -> None:
    outcome = lookback.run("sessions", "list", "--server", "no-such-host.invalid")
    assert outcome.err.startswith("error: UNREACHABLE: no server answers at no-such-host.invalid")
