"""systemd's service and timer of each job of the host, for nodes that systemd runs.

`observatory scheduler run` is what both start on AWS and on `local`: it keeps the record of runs and their metrics.
"""

from __future__ import annotations

from collections.abc import Iterable

from observatory.nodes.host_jobs import HostJob
from observatory.nodes.unit import render

STOP_SECONDS = 60  # what a job gets to end in order, as under `observatory scheduler`


def unit_name(job: HostJob) -> str:
    """Return the name of the job's units, without their suffix."""
    return f"observatory-{job.name}"


def timer_files(
    jobs: Iterable[HostJob],
    *,
    stack: str,
    program: str,
    directory: str,
    user: str,
    units: str = "/etc/systemd/system",
) -> dict[str, str]:
    """Return the unit files of jobs by their path.

    Args:
        jobs: what is to run.
        stack: the stack that the jobs are of.
        program: the absolute path of `observatory`.
        directory: the checkout that it runs in.
        user: whom it runs as.
        units: where systemd looks for units.
    """
    files = {}
    for job in jobs:
        values = {"job": job, "stack": stack, "program": program, "directory": directory, "user": user}
        path = f"{units}/{unit_name(job)}"
        files[f"{path}.service"] = render("job.service.j2", stop_seconds=STOP_SECONDS, **values)
        files[f"{path}.timer"] = render("job.timer.j2", **values)
    return files
