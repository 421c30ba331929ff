"""Tells people what became of a retraining: by webhook, by mail."""

import json
import logging
import os
import smtplib
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, Final

import httpx
import pydantic

from data_ingest.errors import InputError
from pipeline.settings import Event, NotifySettings

_log = logging.getLogger(__name__)
WEBHOOK_VARIABLE: Final = "ONESHOT_WEBHOOK_URL"
PASSWORD_VARIABLE: Final = "ONESHOT_SMTP_PASSWORD"
_SECONDS: Final = 10.0
_PAUSES: Final = (1.0, 4.0)


@dataclass(frozen=True)
class Notice:
    """Something that people want to know.

    Attributes:
      event: of what kind it is.
      title: one line; a mail's subject.
      details: JSON-able values by name, in the order in which people are to read them.
    """

    event: Event
    title: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The notice for people: the title, then a line a detail; what is unknown is left out."""
        lines = [f"{k}: {v}" for k, v in self.details.items() if v is not None and v != ""]
        return "\n".join([self.title, *lines])


class Notifier:
    """Sends notices where the settings say.

    A notice that cannot be sent is a warning in the log and nothing else: a model that is served
    must not count as failed because a mail server is down. No log line holds the address of the
    webhook, which in Slack's case is a key, nor the password.
    """

    def __init__(
        self,
        settings: NotifySettings,
        environ: Mapping[str, str] = os.environ,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Looks over the addresses in settings and environment; nothing is sent yet.

        Raises:
          InputError: the webhook is no http(s) address, or a user has no password.
        """
        self._settings = settings
        self._sleep = sleep
        given = settings.webhook_url.get_secret_value() if settings.webhook_url else ""
        self._webhook = environ.get(WEBHOOK_VARIABLE) or given
        self._password = environ.get(PASSWORD_VARIABLE, "")
        try:
            if self._webhook:
                pydantic.TypeAdapter(pydantic.HttpUrl).validate_python(self._webhook)
        except pydantic.ValidationError:
            raise InputError(
                f"{WEBHOOK_VARIABLE} or notify.webhook_url: not an http:// or https:// address"
            ) from None
        if settings.smtp_host and settings.smtp_user and not self._password:
            raise InputError(
                f"notify.smtp_user is {settings.smtp_user}, but {PASSWORD_VARIABLE} is not set"
            )

    def tells_of(self, event: Event) -> bool:
        """Whether anybody is told of such an event."""
        somebody = bool(self._webhook or self._settings.smtp_host)
        return somebody and event in self._settings.events

    def send(self, notice: Notice) -> bool:
        """Sends a notice everywhere; returns whether nothing went wrong."""
        if not self.tells_of(notice.event):
            return True
        done = True
        if self._webhook:
            done &= self._try(lambda: self._post(notice), "the webhook")
        if self._settings.smtp_host:
            done &= self._try(lambda: self._mail(notice), f"mail by {self._settings.smtp_host}")
        return done

    def _try(self, send: Callable[[], None], what: str) -> bool:
        for pause in (*_PAUSES, None):
            try:
                send()
                return True
            except (httpx.HTTPError, OSError, smtplib.SMTPException) as error:
                reason, final = _judged(error)
                if pause is None or final:
                    _log.warning("No notice by %s: %s", what, reason)
                    break
                self._sleep(pause)
        return False

    def _post(self, notice: Notice) -> None:
        if self._settings.webhook_format == "slack":
            body: dict[str, Any] = {"text": notice.text()}
        else:
            body = {"event": notice.event, "title": notice.title, **notice.details}
        for name in ("httpx", "httpcore"):
            # They log each request with its whole address.
            logging.getLogger(name).setLevel(logging.WARNING)
        httpx.post(
            self._webhook,
            content=json.dumps(body, default=str),
            headers={"Content-Type": "application/json"},
            timeout=_SECONDS,
        ).raise_for_status()

    def _mail(self, notice: Notice) -> None:
        settings = self._settings
        message = EmailMessage()
        # An error's text may be in it; a header holds no line break.
        message["Subject"] = " ".join(notice.title.split())
        message["From"] = settings.mail_from
        message["To"] = ", ".join(settings.mail_to)
        message.set_content(notice.text() + "\n")
        host, port = settings.smtp_host or "", settings.smtp_port
        context = ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(host, port, timeout=_SECONDS, context=context)
            if settings.smtp_security == "tls"
            else smtplib.SMTP(host, port, timeout=_SECONDS)
        ) as server:
            if settings.smtp_security == "starttls":
                server.starttls(context=context)
            if settings.smtp_user:
                server.login(settings.smtp_user, self._password)
            server.send_message(message)


def _judged(error: Exception) -> tuple[str, bool]:
    """What went wrong, without addresses (those of webhooks are keys), and whether for good."""
    if isinstance(error, httpx.HTTPStatusError):
        answer = error.response
        passing = answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS
        return f"status {answer.status_code}", not passing
    if isinstance(error, smtplib.SMTPResponseException):
        # RFC 5321, section 4.2.1
        return f"the server answered {error.smtp_code}", error.smtp_code >= 500
    explanation = getattr(error, "strerror", None)
    kind = type(error).__name__
    return f"{kind}: {explanation}" if explanation else kind, False
