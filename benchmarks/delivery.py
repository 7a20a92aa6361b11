"""Effects of deployments on users: traffic shifts, rollbacks and a bad version under an open-loop load.

`python -m benchmarks delivery` measures and writes docs/benchmarks-delivery.md. The page defines the
rates, and which requests count as "during a shift".
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import startup
from benchmarks.load import Answer, Load
from proofs.table import sections_of
from tests.support.checkout import Checkout
from tests.support.releases import variant

REPORT = Path(__file__).resolve().parent.parent / "docs/benchmarks-delivery.md"
TEMPLATE = Path(__file__).with_name("delivery.md")
ROUNDS = 20
QUIET_S = 6.0  # after each change of the weights, before the next command
BEFORE_S, AROUND_S = 0.5, 3.0  # seconds before and after a change of the weights that count as during it
SLOWEST_RATE, RATE_STEP = 300, 50
CPU_LIMIT = 0.8
OLD, NEW, BAD = "v0.1.0", "v0.2.0", "v0.3.0"


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One change of the weights, in monotonic seconds: the command's start, the weights in force, the command's end."""

    started: float
    effective: float
    ended: float


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Seconds until a bad version was rolled back; `seen` are failed requests, `share` their part of all requests."""

    from_first_bad_answer: float
    from_failed_evaluation: float
    seen: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The measurements: seconds, except for counts, the rate (per second) and the CPU utilization (0 to 1)."""

    rate: float
    cpu: float
    requests: int
    failed: int
    errors: list[str]
    quiet_p99: float
    flip_p99: float
    ratio: float
    rollbacks: list[float]
    deploys: list[float]
    gate: Gate


def measure(checkout: Checkout) -> Delivery:
    """Bring the stack of a checkout up, and measure on it."""
    checkout.configure(delivery={"bake_seconds": 0})
    startup.make(checkout, "up")
    _add_releases(checkout)
    _observatory(checkout, *_deploy(NEW))  # the first run of each fills caches
    _observatory(checkout, *_ROLLBACK)
    rate, cpu = _calibrate(checkout)
    with _load(checkout, rate) as load:
        time.sleep(QUIET_S)
        flips, rollbacks = [], []
        for _ in range(ROUNDS):
            flips.append(_flip(checkout, "shift", *_deploy(NEW)))
            time.sleep(QUIET_S)
            rollbacks.append(_flip(checkout, "rolled-back", *_ROLLBACK))
            time.sleep(QUIET_S)
    quick = [answer for answer in load.answers if not answer.slow]
    quiet = _p99([answer for answer in quick if _is_quiet(answer, [*flips, *rollbacks])])
    during = _p99([answer for answer in quick if _is_during(answer, [*flips, *rollbacks])])
    failed = [answer for answer in load.answers if answer.failed]
    return Delivery(
        rate=rate,
        cpu=cpu,
        requests=len(load.answers),
        failed=len(failed),
        errors=sorted({f"{answer.status} {answer.error}" for answer in failed})[:5],
        quiet_p99=quiet,
        flip_p99=during,
        ratio=during / quiet,
        rollbacks=[_effective_for_users(load.answers, each) - each.started for each in rollbacks],
        deploys=[each.ended - each.started for each in flips],
        gate=_measure_gate(checkout, rate),
    )


def write(measured: Delivery, machine: str, commit: str) -> str:
    """Write the page and return it."""
    tables = sections_of(REPORT.read_text())
    page = TEMPLATE.read_text().format(
        machine=machine,
        commit=commit,
        measured=measured,
        rounds=ROUNDS,
        around=AROUND_S,
        quiet=QUIET_S,
        errors="\n".join(f"- `{error}`" for error in measured.errors) or "None.",
        rollback=f"{statistics.median(measured.rollbacks):.2f} s (at most {max(measured.rollbacks):.2f} s)",
        deploy=f"{statistics.median(measured.deploys):.1f} s",
        cpu=f"{measured.cpu:.0%}",
        quiet_p99=f"{measured.quiet_p99 * 1000:.0f} ms",
        flip_p99=f"{measured.flip_p99 * 1000:.0f} ms",
        gates=tables.pop("gates"),
        proved="\n".join(tables.values()),
    )
    REPORT.write_text(page)
    return page


_ROLLBACK = ("rollback", "--method", "blue-green", "--emergency")


def _deploy(version: str) -> tuple[str, ...]:
    return ("deploy", "application", "--version", version, "--strategy", "blue-green", "--skip-tests")


def _add_releases(checkout: Checkout) -> None:
    first = checkout.root / f".observatory/releases/{OLD}.tar.gz"
    key = (checkout.root / ".observatory/signing-key.pem").read_text()
    for version, fault in ((NEW, "good"), (BAD, "failing")):
        made = variant(first, version, checkout.root / "made", key=key, fault=fault)
        _observatory(checkout, "release", "add", str(made))


def _load(checkout: Checkout, rate: float) -> Load:
    names = ("service_url", "api_key", "ca_file")
    url, key, ca_file = (json.loads(_observatory(checkout, "outputs", name, "--show-secrets")) for name in names)
    return Load(url=url, api_key=key, ca_file=ca_file, rate=rate)


def _calibrate(checkout: Checkout) -> tuple[float, float]:
    """Return the highest rate, from the slowest up, that keeps the whole machine's CPU under the limit in a deployment.

    The second value is the CPU utilization at that rate.
    """
    rate, used = SLOWEST_RATE, _cpu_at(checkout, SLOWEST_RATE)
    while used < CPU_LIMIT and (more := _cpu_at(checkout, rate + RATE_STEP)) < CPU_LIMIT:
        rate, used = rate + RATE_STEP, more
    return rate, used


def _cpu_at(checkout: Checkout, rate: float) -> float:
    """Return the CPU utilization from the start of a deployment until its version has the traffic."""
    with _load(checkout, rate), ThreadPoolExecutor() as pool:
        time.sleep(QUIET_S)
        begun, (busy, total) = time.time(), _cpu_times()
        deployed = pool.submit(_observatory, checkout, *_deploy(NEW))
        while not (deployed.done() or _shifted_since(checkout, begun)):
            time.sleep(0.05)
        busy_after, total_after = _cpu_times()
        deployed.result()
        _observatory(checkout, *_ROLLBACK)
    return (busy_after - busy) / (total_after - total)


def _shifted_since(checkout: Checkout, begun: float) -> bool:
    return any(entry["event"] == "shift" and entry["at"] > begun for entry in _journal(checkout))


def _cpu_times() -> tuple[int, int]:
    """Return the machine's busy and total time in ticks, see proc(5), /proc/stat."""
    times = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = times[3] + times[4]
    return sum(times) - idle, sum(times)


def _flip(checkout: Checkout, event: str, *command: str) -> Flip:
    """Run a command that changes the weights once, and read from the journal when it did."""
    wall = time.time() - time.monotonic()
    started = time.monotonic()
    _observatory(checkout, *command)
    ended = time.monotonic()
    effective = max(entry["at"] for entry in _journal(checkout) if entry["event"] == event) - wall
    return Flip(started=started, effective=effective, ended=ended)


def _journal(checkout: Checkout) -> list[dict[str, Any]]:
    lines = (checkout.root / ".observatory/rollout/local.journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _is_during(answer: Answer, flips: list[Flip]) -> bool:
    return any(-BEFORE_S <= answer.at - flip.effective <= AROUND_S for flip in flips)


def _is_quiet(answer: Answer, flips: list[Flip]) -> bool:
    """Return whether no command ran and no shift was near."""
    return not any(flip.started - BEFORE_S <= answer.at <= max(flip.ended, flip.effective + AROUND_S) for flip in flips)


def _p99(answers: list[Answer]) -> float:
    latencies = sorted(answer.seconds for answer in answers)
    return latencies[int(len(latencies) * 0.99)]


def _effective_for_users(answers: list[Answer], flip: Flip) -> float:
    """Return when the last request was sent that the previous version still handled."""
    late = [answer.at for answer in answers if answer.version == NEW and flip.started <= answer.at <= flip.ended + 2]
    return max(late, default=flip.started)


def _measure_gate(checkout: Checkout, rate: float) -> Gate:
    """Deploy a version that fails every twentieth write to a fifth of the users; measure the time to its rollback."""
    wall = time.time() - time.monotonic()
    begun = time.time()
    with _load(checkout, rate) as load:
        _observatory(
            checkout, "deploy", "application", "--version", BAD, "--strategy", "canary", "--canary-percentage", "20",
            "--bake", "90", "--skip-tests", expect=1,
        )  # fmt: skip
    entries = [entry for entry in _journal(checkout) if entry["at"] > begun]
    evaluations = [entry["at"] for entry in entries if entry["event"] == "gate" and entry["verdict"] == "failed"]
    back = max(entry["at"] for entry in entries if entry["event"] == "rolled-back")
    bad = [answer for answer in load.answers if answer.failed]
    first = min(answer.at + answer.seconds for answer in bad) + wall
    return Gate(
        from_first_bad_answer=back - first,
        from_failed_evaluation=back - evaluations[0],
        seen=len(bad),
        share=len(bad) / len(load.answers),
    )


def _observatory(checkout: Checkout, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [checkout.root / ".venv/bin/observatory", *arguments, "--output", "json"],
        cwd=checkout.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != expect:
        raise RuntimeError(f"observatory {' '.join(arguments)} -> {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout
