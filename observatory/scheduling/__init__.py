"""Runs the scheduled jobs of a `local` stack at their times and records their results.

`runner` runs one job under its lock and timeout; `scheduler` starts runners at their times; `records` stores each
result and publishes it to Prometheus; `scheduler_process` starts, finds and stops a stack's scheduler; `webhook`
receives alerts that roll back; `log_rotation` rotates logs. `observatory.nodes.host_jobs` lists the jobs. On AWS
systemd's timers replace the scheduler.
"""
