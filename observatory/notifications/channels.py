"""Where notices go, each by one attempt.

Slack takes an incoming webhook's `text` (https://api.slack.com/messaging/webhooks), PagerDuty an event of its API v2
(https://developer.pagerduty.com/docs/events-api-v2/overview/), a webhook the notice itself as JSON. An address that is
itself the secret is read from its file at each use, so that a new one counts at once; no message repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from observatory.errors import ObservatoryError
from observatory.notifications.messages import Kind, Notice

if TYPE_CHECKING:
    import httpx

ATTEMPT_SECONDS = 5.0  # of one attempt
REQUEST_TIMEOUT, TOO_MANY_REQUESTS = 408, 429
SMTP_PERMANENT = 500
BODY_CHARACTERS = 200  # of an answer, in a message


class RefusedError(ObservatoryError):
    """The receiver will not take this notice, however often it is sent."""


class UnavailableError(ObservatoryError):
    """The receiver did not take it now; `after_s` is how long it asked to wait."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Channel(Protocol):
    """One way to tell."""

    @property
    def name(self) -> str:
        """What it is called in the journal."""

    def send(self, notice: Notice) -> None:
        """Send once; raise RefusedError or UnavailableError where it was not taken."""


@dataclass(frozen=True)
class Secret:
    """A secret: in a file, or plain where it is none, as the local receiver's address."""

    file: Path | None = None
    plain: str = field(default="", repr=False)

    def read(self) -> str:
        """Return it.

        Raises:
            RefusedError: the file cannot be read, or is empty.
        """
        if self.file is None:
            return self.plain
        try:
            value = self.file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{self.file} cannot be read: {error}") from error
        if not value:
            raise RefusedError(f"{self.file} is empty")
        return value


@dataclass(frozen=True)
class Slack:
    """A Slack channel, by its incoming webhook."""

    webhook: Secret
    name: str = "slack"

    def send(self, notice: Notice) -> None:
        """Post the notice as a message."""
        text = f"*{_escaped(notice.title)}* ({_escaped(notice.actor)})\n{_escaped(notice.text)}"
        _post(self.webhook.read(), {"text": text})


@dataclass(frozen=True)
class Webhook:
    """Any program that takes JSON."""

    url: Secret
    name: str = "webhook"

    def send(self, notice: Notice) -> None:
        """Post the notice itself."""
        _post(self.url.read(), notice.document())


@dataclass(frozen=True)
class PagerDuty:
    """A service of PagerDuty: a rollback or an escalation opens an incident for its deployment, its end closes it."""

    routing_key: Secret
    url: str
    name: str = "pagerduty"

    def send(self, notice: Notice) -> None:
        """Trigger or resolve; other notices page nobody."""
        event: dict[str, Any] = {"dedup_key": f"{notice.stack}/{notice.deployment}"}
        if severity := SEVERITIES.get(notice.kind):
            event["event_action"] = "trigger"
            event["payload"] = {
                "summary": notice.title,
                "source": notice.stack,
                "severity": severity,
                "timestamp": notice.at,
                "component": "service",
                "class": "delivery",
                "custom_details": {**notice.details, "actor": notice.actor},
            }
        elif notice.kind in ENDS:
            event["event_action"] = "resolve"
        else:
            return
        _post(self.url, {"routing_key": self.routing_key.read(), **event})


SEVERITIES: dict[Kind, str] = {"rollback": "warning", "escalation": "critical", "proposal": "critical"}
ENDS: tuple[Kind, ...] = ("rolled-back", "success")


@dataclass(frozen=True, kw_only=True)
class Email:
    """Mail by a server that speaks SMTP; a password goes over TLS only."""

    to: str
    sender: str
    host: str
    port: int
    username: str | None = None
    password: Secret = field(default_factory=Secret)
    require_tls: bool = True
    name: str = "email"

    def send(self, notice: Notice) -> None:
        """Send the notice as plain text."""
        import smtplib  # noqa: PLC0415 - only where mail is sent
        import ssl  # noqa: PLC0415

        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self.sender, self.to, notice.title
        message["X-Observatory-Deployment"] = notice.deployment
        message.set_content(f"{notice.text}\nby: {notice.actor}\nat: {notice.at}\n")
        try:
            with smtplib.SMTP(self.host, self.port, timeout=ATTEMPT_SECONDS) as server:
                if self.require_tls:
                    server.starttls(context=ssl.create_default_context())
                if self.username:
                    server.login(self.username, self.password.read())
                server.send_message(message)
        except (smtplib.SMTPAuthenticationError, smtplib.SMTPNotSupportedError, ssl.SSLCertVerificationError) as error:
            raise RefusedError(f"{self.host}:{self.port}: {error}") from error
        except smtplib.SMTPResponseException as error:
            raise _smtp(f"{self.host}:{self.port}", error.smtp_code, error.smtp_error) from error
        except smtplib.SMTPRecipientsRefused as error:
            code, said = error.recipients[self.to]
            raise _smtp(f"{self.host}:{self.port}", code, said) from error
        except (smtplib.SMTPException, OSError) as error:
            raise UnavailableError(f"{self.host}:{self.port}: {error}") from error


def _post(url: str, document: dict[str, Any]) -> None:
    """Post JSON, with the address in no message: it may be the secret."""
    import httpx  # noqa: PLC0415 - in the thread that sends: a rollback does not wait for it

    try:
        answer = httpx.post(url, json=document, timeout=ATTEMPT_SECONDS)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise RefusedError("its address is no URL of http or https") from error
    except httpx.HTTPError as error:
        raise UnavailableError(f"{type(error).__name__}: {error}") from error
    if answer.is_success:
        return
    said = f"answered {answer.status_code}: {answer.text[:BODY_CHARACTERS]}"
    if answer.is_server_error or answer.status_code in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS):
        raise UnavailableError(said, _retry_after(answer))
    raise RefusedError(said)


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds that the answer asks to wait; a date, which none of these services sends, is passed over."""
    given = answer.headers.get("Retry-After", "")
    return float(given) if given.isdecimal() else None


def _escaped(text: str) -> str:
    """Return a text with Slack's three control characters escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _smtp(server: str, code: int, said: bytes | str) -> RefusedError | UnavailableError:
    """Return what a server's answer means: 4yz are for now, 5yz for good."""
    text = f"{server} answered {code} {said.decode(errors='replace') if isinstance(said, bytes) else said}"
    return RefusedError(text) if code >= SMTP_PERMANENT else UnavailableError(text)
