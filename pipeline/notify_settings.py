"""Settings of notifications."""

from typing import Literal

from pydantic import Field, SecretStr, model_validator

from data_ingest.settings import Settings

Event = Literal["blessed", "not_blessed", "failed", "drift"]


class NotifySettings(Settings):
    """Who is told what became of a retraining. Secrets are better given by the environment."""

    events: tuple[Event, ...] = Field(
        ("blessed", "not_blessed", "failed", "drift"), description="what is told of"
    )
    webhook_url: SecretStr | None = Field(
        None,
        description="http(s) address that gets each notice; ONESHOT_WEBHOOK_URL is the same and "
        "keeps it out of this file",
    )
    webhook_format: Literal["json", "slack"] = Field(
        "json", description="json: all details; slack: a text, as Slack and Mattermost take it"
    )
    smtp_host: str | None = Field(None, description="mail server; null: no mail")
    smtp_port: int = Field(587, ge=1, le=65_535, description="its port")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="how the connection is encrypted"
    )
    smtp_user: str | None = Field(
        None, description="name to log in with; the password is ONESHOT_SMTP_PASSWORD"
    )
    mail_from: str | None = Field(None, description="sender's address")
    mail_to: tuple[str, ...] = Field((), description="receivers' addresses")

    @model_validator(mode="after")
    def _mail_is_complete(self) -> "NotifySettings":
        if self.smtp_host is not None and not (self.mail_from and self.mail_to):
            raise ValueError("smtp_host needs mail_from and mail_to")
        return self
