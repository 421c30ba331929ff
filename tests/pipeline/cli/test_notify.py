"""`oneshot notify`: what a scheduler, or somebody who tries the settings, has sent."""

import json

import pytest

from pipeline.cli.main import main
from tests.pipeline.retraining.webhook import hook


def test_a_notice_has_the_title_and_the_details_that_were_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hook() as made:
        monkeypatch.setenv("ONESHOT_WEBHOOK_URL", made.url)
        assert main(["notify", "failed", "span 7", "--detail", "error=a=b", "--json"]) == 0
    assert made.bodies == [{"event": "failed", "title": "span 7", "error": "a=b"}]
    assert json.loads(capsys.readouterr().out) == {"sent": True}


def test_a_refused_notice_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    with hook(404) as made:
        monkeypatch.setenv("ONESHOT_WEBHOOK_URL", made.url)
        assert main(["notify", "failed", "span 7"]) == 1


def test_where_nobody_is_to_be_told_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ONESHOT_WEBHOOK_URL", raising=False)
    assert main(["notify", "failed", "span 7"]) == 1
    assert "nobody is to be told of failed" in capsys.readouterr().err
    with hook() as made:
        monkeypatch.setenv("ONESHOT_WEBHOOK_URL", made.url)
        assert main(["notify", "drift", "span 7", "--set", "notify.events=[failed]"]) == 1
        assert made.bodies == []


def test_a_detail_without_a_value_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["notify", "failed", "span 7", "--detail", "error"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err
