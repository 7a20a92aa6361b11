"""The certificates of a `local` stack: how long they are valid, and their renewal.

The program renews a certificate in its last 30 days, so a renewal runs the program, but only if it changes nothing
else. Daemons use the new certificates for new connections; open connections continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from observatory.engines import embedded
from observatory.engines.embedded import Step
from observatory.errors import REFUSED, ObservatoryError
from observatory.nodes import Paths
from observatory.nodes.tls import certificates_directory
from observatory.operations.deployment_lock import no_deployment_under_way
from observatory.operations.engine_progress import report_steps
from observatory.platforms import open_platform
from observatory.platforms.engine_choice import engine_of
from observatory.platforms.errors import OperationError, StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.platforms.stack_state import engine_options, state_options
from observatory.progress import Reporter, silent
from observatory.scheduling.certificates import publish_certificates
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.security.certificates import Validity

UNCHANGED = ("same", "refresh", "read")
CERTIFICATE_SUFFIXES, AUTHORITY = (".crt", ".pem"), "ca"  # of the files; the authority's name
CERTIFICATE, DAEMON = "dynamic/local:Certificate", "dynamic/local:Daemon"


class RenewalRefusedError(ObservatoryError):
    """A renewal would change more than certificates; nothing was changed."""

    exit_code = REFUSED


class CertificateMissingError(ObservatoryError):
    """Files of certificates are missing; `up` writes them again from the state."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """The names of the renewed certificates, and the validity of all."""

    renewed: tuple[str, ...]
    certificates: tuple[Validity, ...]


def list_certificates(workspace: Workspace) -> list[Validity]:
    """Return the validity of each certificate of a stack, the next to expire first; none where it is not up.

    Raises:
        OperationError: the platform is not supported, or a file has no certificate.
    """
    from observatory.security.certificates import validities  # noqa: PLC0415 - cryptography only where it is used

    check_supported(open_platform(workspace), "certificates")
    directory = workspace.sandbox.host_path(certificates_directory(Paths()))
    try:
        return validities(directory)
    except ValueError as error:
        raise OperationError(
            f"a certificate in {directory} cannot be read: {error}", remedy="Run `observatory up`."
        ) from error


def missing_certificates(workspace: Workspace) -> list[str]:
    """Return the names of the certificates that the last `up` declared and whose files are missing."""
    declared = [each.name for each in embedded.resources(state_options(workspace)) if each.type.endswith(CERTIFICATE)]
    directory = workspace.sandbox.host_path(certificates_directory(Paths()))
    found = {file.stem for file in directory.glob("*.*") if file.suffix in CERTIFICATE_SUFFIXES}
    return sorted(name for name in (*declared, *([AUTHORITY] if declared else [])) if name not in found)


def check_none_is_missing(workspace: Workspace) -> None:
    """Check that every declared certificate has its file.

    Raises:
        CertificateMissingError: one has not.
    """
    if missing := missing_certificates(workspace):
        raise CertificateMissingError(
            f"certificates are missing: {', '.join(missing)}", remedy="Run `observatory up`, which writes them again."
        )


def renew_certificates(workspace: Workspace, *, report: Reporter = silent) -> Renewal:
    """Renew the certificates that expire within 30 days, without closing a connection.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        CertificateMissingError: a certificate's file is missing; nothing was changed.
        RenewalRefusedError: it would change something else; nothing was changed.
        LockHeldError: a deployment is under way; nothing was changed.
        EngineError: a step failed.
    """
    before = list_certificates(workspace)
    if not before:
        raise StackNotUpError(workspace.stack)
    check_none_is_missing(workspace)
    if any(each.due for each in before):
        _renew(workspace, report)
        publish_certificates(workspace.sandbox)
    after = list_certificates(workspace)
    ends = {each.name: each.ends for each in before}
    renewed = tuple(each.name for each in after if each.ends != ends.get(each.name))
    return Renewal(renewed=renewed, certificates=tuple(after))


def _renew(workspace: Workspace, report: Reporter) -> None:
    platform = open_platform(workspace)
    engine, options = engine_of("embedded"), engine_options(platform)
    with no_deployment_under_way(platform, command="certificates renew"):
        _check_only_certificates(engine.preview(options).steps)
        with report_steps(report, "renew") as on_event:
            engine.up(options, on_event=on_event)


def _check_only_certificates(steps: Sequence[Step]) -> None:
    """Refuse a plan with other changes: a job must not deploy a change that waits for an `up`."""
    others = [step for step in steps if step.operation not in UNCHANGED and not _renews(step)]
    if others:
        listed = ", ".join(f"{step.operation} {step.name}" for step in others)
        raise RenewalRefusedError(
            f"certificates expire soon, but a renewal would change more than certificates ({listed})",
            remedy="Run `observatory up`, which renews them too.",
        )


def _renews(step: Step) -> bool:
    """Return whether a step renews a certificate, or passes a renewed one to a daemon."""
    if step.operation != "update":
        return False
    paths = (change.path for change in step.changes if not change.path.startswith("__"))
    changed = {path.partition(".")[0].partition("[")[0] for path in paths}
    return step.type.endswith(CERTIFICATE) or (step.type.endswith(DAEMON) and changed <= {"secret_files"})
