"""The jobs of the host on the `local` stack: run one, run all at their times, keep the record of what came of it.

`runner` runs a single job under its lock and its timeout; `scheduler` starts runners at their times; `records` keeps
what became of each and tells Prometheus; `daemon` starts, finds and stops a stack's scheduler. What the jobs are is
`observatory.nodes.host_jobs`; on AWS systemd's timers take the scheduler's part.
"""
