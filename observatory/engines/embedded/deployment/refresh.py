"""Reads every resource from its provider, and takes the findings into the state."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from observatory.engines.embedded import values
from observatory.engines.embedded.backend import now
from observatory.engines.embedded.deployment.executor import StepExecutor, step_for
from observatory.engines.embedded.deployment.operations import set_outputs
from observatory.engines.embedded.deployment.planner import Planner
from observatory.engines.embedded.deployment.provider_pool import ProviderPool
from observatory.engines.embedded.events import Operation
from observatory.engines.embedded.provider import PROVIDER_TYPE
from observatory.engines.embedded.snapshot import Snapshot, State
from observatory.engines.embedded.values import differences, reveal


class Refresh:
    """Compares the state with what exists."""

    def __init__(self, snapshot: Snapshot, executor: StepExecutor, providers: ProviderPool, planner: Planner) -> None:
        self._snapshot, self._executor, self._providers, self._planner = snapshot, executor, providers, planner

    def run(self, parallel: int) -> None:
        """Read all resources, ``parallel`` at a time, and drop those that are gone from the state.

        Raises:
            StepFailed: a provider failed; the state stays as it was.
            Interrupted: the run is stopping; the state stays as it was.
        """
        with ThreadPoolExecutor(parallel) as pool:
            found = [state for state in pool.map(self._read, self._snapshot.olds) if state is not None]
        alive: set[str] = set()
        for number, state in enumerate(found):
            found[number] = state.referring(dict.fromkeys(state.needs() - alive, ""))
            alive.add(state.urn)
        self._snapshot.rebase(found)

    def _read(self, old: State) -> State | None:
        """Return a resource as its provider reads it, None if it is gone."""
        self._executor.check_running()
        step = step_for("refresh", old)
        if old.type.startswith(PROVIDER_TYPE) or not old.is_managed or old["pendingReplacement"]:
            self._executor.report("done", replace(step, operation="same"))
            return old
        self._executor.report("started", step)
        begun = time.monotonic()
        new = self._found(old)
        drifted = new["id"] and self._planner.compare(new, old["inputs"], old).changes
        outcome: Operation = "update" if drifted else "same" if new["id"] else "delete"
        changes = tuple(differences(old["outputs"], new["outputs"])) if new["id"] else ()
        seconds = time.monotonic() - begun
        self._executor.report("done", replace(step, operation=outcome, changes=changes, seconds=seconds))
        if not new["id"]:
            return None
        return old if new == old else State(new | {"modified": now()})

    def _found(self, old: State) -> State:
        """Return the resource with the ID (empty if it is gone), inputs and outputs that its provider reads."""
        olds = reveal(old["inputs"]), reveal(old["outputs"])
        id_, outputs, inputs = self._providers.call("refresh", old, lambda p: p.read(old.urn, old["id"], *olds))
        new = State(old | {"id": id_, "inputs": values.keep_secret(inputs, old["inputs"])})
        set_outputs(new, values.keep_secret(outputs, old["outputs"]))
        return new
