"""The channels that notices are sent through; each sends a notice once.

Slack gets the `text` of an incoming webhook (https://api.slack.com/messaging/webhooks), PagerDuty an event of its API
v2 (https://developer.pagerduty.com/docs/events-api-v2/overview/), a webhook the notice itself as JSON. An address that
is secret is read from its file for each notice, so that a change takes effect at once, and appears in no message.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from observatory.errors import ObservatoryError
from observatory.notifications.messages import Kind, Notice
from observatory.security.client_certificate import ClientCertificate

if TYPE_CHECKING:
    import httpx

ATTEMPT_SECONDS = 5.0  # for each step of an attempt: to connect, and until more of an answer comes
REQUEST_TIMEOUT, TOO_MANY_REQUESTS = 408, 429
SMTP_PERMANENT = 500
BODY_CHARACTERS = 200  # of a response, in a message
UNCOMPRESSED = {"Accept-Encoding": "identity"}


class RefusedError(ObservatoryError):
    """The receiver refused the notice for good; a retry is pointless."""


class UnavailableError(ObservatoryError):
    """The receiver did not accept the notice now; `after_s` is its `Retry-After` in seconds, if it sent one."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Channel(Protocol):
    """One way to send notices."""

    @property
    def name(self) -> str:
        """The channel's name in the journal."""

    def send(self, notice: Notice) -> None:
        """Send a notice once; raise RefusedError or UnavailableError if it was not accepted."""


@dataclass(frozen=True)
class Secret:
    """A secret in a file, or a plain value that is not secret, such as the local receiver's address."""

    file: Path | None = None
    plain: str = field(default="", repr=False)

    def read(self) -> str:
        """Return the value.

        Raises:
            RefusedError: the file cannot be read, or is empty.
        """
        if self.file is None:
            return self.plain
        try:
            value = self.file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{self.file} cannot be read: {error}; write the secret to this file") from error
        if not value:
            raise RefusedError(f"{self.file} is empty: write the secret to this file")
        return value


@dataclass(frozen=True)
class Slack:
    """A Slack channel with an incoming webhook; `client` is the certificate that its server requires, if any."""

    webhook: Secret
    name: str = "slack"
    client: ClientCertificate | None = None

    def send(self, notice: Notice) -> None:
        """Post the notice as a message."""
        text = f"*{_escaped(notice.title)}* ({_escaped(notice.actor)})\n{_escaped(notice.text)}"
        _post(self.webhook.read(), {"text": text}, self.client)


@dataclass(frozen=True)
class Webhook:
    """Any program that accepts JSON; `client` is the certificate that it requires, if any."""

    url: Secret
    name: str = "webhook"
    client: ClientCertificate | None = None

    def send(self, notice: Notice) -> None:
        """Post the notice itself."""
        _post(self.url.read(), notice.document(), self.client)


@dataclass(frozen=True)
class PagerDuty:
    """A PagerDuty service: a rollback or an escalation opens an incident of the deployment, its end resolves it.

    `client` is the certificate that its server requires, if any.
    """

    routing_key: Secret
    url: str
    name: str = "pagerduty"
    client: ClientCertificate | None = None

    def send(self, notice: Notice) -> None:
        """Trigger or resolve an incident; other notices send no event."""
        event: dict[str, Any] = {"dedup_key": f"{notice.stack}/{notice.deployment}"}
        if severity := SEVERITIES.get(notice.kind):
            event["event_action"] = "trigger"
            event["payload"] = {
                "summary": notice.title,
                "source": notice.stack,
                "severity": severity,
                "timestamp": notice.at,
                "component": "monitoring" if notice.kind == "monitoring-down" else "service",
                "class": "monitoring" if notice.kind == "monitoring-down" else "delivery",
                "custom_details": {**notice.details, "actor": notice.actor},
            }
        elif notice.kind in ENDS:
            event["event_action"] = "resolve"
        else:
            return
        _post(self.url, {"routing_key": self.routing_key.read(), **event}, self.client)


SEVERITIES: dict[Kind, str] = {
    "rollback": "warning",
    "escalation": "critical",
    "proposal": "critical",
    "monitoring-down": "critical",
}
ENDS: tuple[Kind, ...] = ("rolled-back", "success", "monitoring-up")


@dataclass(frozen=True, kw_only=True)
class Email:
    """Mail through an SMTP server; a password is sent over TLS only."""

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
            with contextlib.closing(smtplib.SMTP(self.host, self.port, timeout=ATTEMPT_SECONDS)) as server:
                if self.require_tls:
                    server.starttls(context=ssl.create_default_context())
                if self.username:
                    server.login(self.username, self.password.read())
                server.send_message(message)
                with contextlib.suppress(smtplib.SMTPException, OSError):  # the mail is on its way
                    server.quit()
        except (smtplib.SMTPNotSupportedError, ssl.SSLCertVerificationError) as error:
            raise RefusedError(f"{self.host}:{self.port}: {error}") from error
        except smtplib.SMTPResponseException as error:
            raise _smtp(f"{self.host}:{self.port}", error.smtp_code, error.smtp_error) from error
        except smtplib.SMTPRecipientsRefused as error:
            code, text = next(iter(error.recipients.values()))
            raise _smtp(f"{self.host}:{self.port}", code, text) from error
        except (smtplib.SMTPException, OSError) as error:
            raise UnavailableError(f"{self.host}:{self.port}: {error}") from error


def _post(url: str, document: dict[str, Any], client: ClientCertificate | None) -> None:
    """Post JSON; no error message has the address, which may be secret.

    A receiver has accepted what it answers with success. Of another answer only the beginning is read, so that one
    without an end takes neither time nor memory.
    """
    import httpx  # noqa: PLC0415 - imported in the sending thread, so that a rollback does not wait for it

    try:
        verify = client.context() if client else True
        answer = httpx.stream("POST", url, json=document, headers=UNCOMPRESSED, timeout=ATTEMPT_SECONDS, verify=verify)
        with answer as response:
            if response.is_success:
                return
            text = _beginning(response)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise RefusedError("the address in its file is not an http or https URL") from error
    except (httpx.HTTPError, OSError) as error:  # OSError: a file of the certificate cannot be read
        raise UnavailableError(f"{type(error).__name__}: {error}") from error
    reason = f"response {response.status_code}: {text}"
    if response.is_server_error or response.status_code in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS):
        raise UnavailableError(reason, _retry_after(response))
    raise RefusedError(reason)


def _beginning(response: httpx.Response) -> str:
    """Return the first characters of an answer, as many as come in `ATTEMPT_SECONDS`."""
    import httpx  # noqa: PLC0415 - as in `_post`

    body, until = b"", time.monotonic() + ATTEMPT_SECONDS
    with contextlib.suppress(httpx.HTTPError):  # the status says enough
        for part in response.iter_raw():
            body += part
            if len(body) >= BODY_CHARACTERS or time.monotonic() > until:
                break
    return body.decode(errors="replace")[:BODY_CHARACTERS]


def _retry_after(response: httpx.Response) -> float | None:
    """Return the `Retry-After` of a response in seconds; a date, which none of these services sends, is ignored."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def _escaped(text: str) -> str:
    """Return a text with Slack's three control characters escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _smtp(server: str, code: int, text: bytes | str) -> RefusedError | UnavailableError:
    """Return the error of an SMTP reply: 4yz is temporary, 5yz permanent."""
    reason = f"{server}: reply {code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    return RefusedError(reason) if code >= SMTP_PERMANENT else UnavailableError(reason)
