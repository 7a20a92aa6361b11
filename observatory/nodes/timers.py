"""systemd's service and timer of a job of the host, for machines that systemd runs.

Times and timeouts are those of the one list (`observatory.nodes.host_jobs`); what a machine runs at them is its own:
a database machine has pgBackRest and not this library.
"""

from __future__ import annotations

from collections.abc import Sequence

from observatory.nodes.host_jobs import HostJob
from observatory.nodes.systemd import DIRECTORY, quoted
from observatory.nodes.unit import render


def timer_files(
    job: HostJob,
    *,
    command: Sequence[str],
    user: str,
    after: Sequence[str] = (),
    writable: Sequence[str] = (),
    directory: str = DIRECTORY,
) -> dict[str, str]:
    """Return the files of a job's service and of its timer, by path.

    Args:
        job: when to run, and for how long at most.
        command: the command line that does it on this machine.
        user: whom it runs as.
        after: services that start before it where they start at all.
        writable: directories that it may write.
        directory: where systemd looks for units.
    """
    path = f"{directory}/observatory-{job.name}"
    line = " ".join(quoted(word, command=True) for word in command)
    return {
        f"{path}.service": render(
            "job.service.j2", job=job, command=line, user=user, after=after, writable=writable, capabilities=()
        ),
        f"{path}.timer": render("job.timer.j2", job=job),
    }
