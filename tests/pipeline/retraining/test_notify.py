import logging
import socket
import ssl
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from pydantic import ValidationError

from data_ingest.errors import InputError
from pipeline.retraining.notify import Notice, Notifier
from pipeline.settings import NotifySettings
from tests.pipeline.retraining.webhook import KEY, hook
from tests.serving.certificates import make_certificate

NOTICE = Notice(
    "not_blessed", "span 7: not blessed", {"span": 7, "accuracy": 0.5, "error": "", "url": None}
)


def notifier(settings: NotifySettings, **environ: str) -> Notifier:
    return Notifier(settings, environ, sleep=lambda seconds: None)


def test_a_webhook_gets_all_details_as_json() -> None:
    with hook() as server:
        assert notifier(NotifySettings(), ONESHOT_WEBHOOK_URL=server.url).send(NOTICE)
    assert server.bodies == [
        {"event": "not_blessed", "title": NOTICE.title, **dict(NOTICE.details)}
    ]


def test_slack_gets_a_text_without_what_is_unknown() -> None:
    with hook() as server:
        settings = NotifySettings(webhook_url=server.url, webhook_format="slack")
        assert notifier(settings).send(NOTICE)
    assert server.bodies == [{"text": "span 7: not blessed\nspan: 7\naccuracy: 0.5"}]


def test_events_that_nobody_asked_for_are_not_told() -> None:
    with hook() as server:
        settings = NotifySettings(webhook_url=server.url, events=("failed",))
        assert notifier(settings).send(NOTICE)
    assert server.bodies == []


@pytest.mark.parametrize(
    ("statuses", "sent", "tries"),
    [((503, 429), True, 3), ((500, 500, 500), False, 3), ((404,), False, 1), ((302,), False, 1)],
)
def test_what_may_pass_is_tried_again(statuses: tuple[int, ...], sent: bool, tries: int) -> None:
    with hook(*statuses) as server:
        assert notifier(NotifySettings(webhook_url=server.url)).send(NOTICE) is sent
    assert len(server.bodies) == tries


@pytest.mark.parametrize("status", [200, 404, 500])
def test_the_address_of_the_webhook_is_in_no_log(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with hook(*[status] * 3) as server:
        settings = NotifySettings(webhook_url=server.url)
        notifier(settings).send(NOTICE)
    assert notifier(settings).send(NOTICE) is False  # nobody listens any more
    assert "No notice by the webhook: ConnectError" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(settings)
    assert KEY not in settings.model_dump_json()


def test_a_bad_address_is_refused_without_showing_it() -> None:
    with pytest.raises(InputError, match="ONESHOT_WEBHOOK_URL") as caught:
        notifier(NotifySettings(), ONESHOT_WEBHOOK_URL=f"ftp://host/{KEY}")
    assert KEY not in str(caught.value)


class Mailbox:
    """Takes mail; with a password only from who knows it."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: object, envelope: Envelope) -> str:  # noqa: N802
        self.mails.append(envelope)
        return "250 taken"


def _authenticate(
    server: SMTP, session: object, envelope: Envelope, mechanism: str, data: LoginPassword
) -> AuthResult:
    known = data.login == b"bot" and data.password == KEY.encode()
    return AuthResult(success=known, handled=False)


@pytest.fixture
def mailbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mailbox, int]]:
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    box = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as free:  # the controller cannot choose itself
        port = free.getsockname()[1]
    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=port,
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=_authenticate,
    )
    controller.start()
    try:
        yield box, port
    finally:
        controller.stop()


def mail_settings(port: int, **values: Any) -> NotifySettings:
    return NotifySettings(
        **{
            "smtp_host": "127.0.0.1",
            "smtp_port": port,
            "smtp_user": "bot",
            "mail_from": "bot@example.com",
            "mail_to": ["a@example.com", "b@example.com"],
            **values,
        }
    )


def test_mail_goes_encrypted_to_all_receivers(mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    assert notifier(mail_settings(port), ONESHOT_SMTP_PASSWORD=KEY).send(NOTICE)
    (mail,) = box.mails
    assert mail.rcpt_tos == ["a@example.com", "b@example.com"]
    message = message_from_bytes(bytes(mail.content or b""), policy=policy.default)
    assert message["Subject"] == NOTICE.title
    assert message.get_content().split() == NOTICE.text().split()


def test_a_wrong_password_is_a_warning_that_does_not_show_it(
    mailbox: tuple[Mailbox, int], caplog: pytest.LogCaptureFixture
) -> None:
    box, port = mailbox
    assert not notifier(mail_settings(port), ONESHOT_SMTP_PASSWORD="wrong-one").send(NOTICE)
    assert box.mails == []
    assert "the server answered 535" in caplog.text
    assert "wrong-one" not in caplog.text


def test_nothing_is_mailed_unencrypted_unless_asked_for(mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    settings = mail_settings(port, smtp_security="none", smtp_user=None)
    assert not notifier(settings).send(NOTICE)
    assert box.mails == []


def test_a_user_without_a_password_is_refused() -> None:
    with pytest.raises(InputError, match="ONESHOT_SMTP_PASSWORD is not set"):
        notifier(mail_settings(25))


def test_half_an_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="smtp_host needs mail_from and mail_to"):
        NotifySettings(smtp_host="mail.example.com", mail_from="a@example.com")


def test_a_title_cannot_smuggle_headers_into_a_mail(mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    evil = Notice("failed", "span 1\nBcc: all@example.com", {"error": "x"})
    assert notifier(mail_settings(port), ONESHOT_SMTP_PASSWORD=KEY).send(evil)
    message = message_from_bytes(bytes(box.mails[0].content or b""), policy=policy.default)
    assert message["Bcc"] is None
