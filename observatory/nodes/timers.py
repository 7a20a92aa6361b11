"""systemd's service and timer of a scheduled job, for machines that systemd runs.

Schedules and timeouts are those of `observatory.nodes.host_jobs`. The command line is the machine's own, because a
database machine has pgBackRest but not this library.
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
        job: has the schedule and the timeout.
        command: the command line of the job on this machine.
        user: that runs it.
        after: services that start before it, if they start at all.
        writable: directories that it may write.
        directory: of systemd's units.
    """
    path = f"{directory}/observatory-{job.name}"
    line = " ".join(quoted(word, command=True) for word in command)
    return {
        f"{path}.service": render(
            "job.service.j2", job=job, command=line, user=user, after=after, writable=writable, capabilities=()
        ),
        f"{path}.timer": render("job.timer.j2", job=job),
    }
