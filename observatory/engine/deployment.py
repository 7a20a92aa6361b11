"""Turns the resources that a program declares into steps, and performs them.

Owns the semantics: which operation a resource needs (pkg/resource/deploy/step_generator.go in Pulumi's source), in
which order things are deleted, what a failure leaves. Writing the state is ``snapshot``'s, the work itself a
provider's, and talking to the program ``monitor``'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NoReturn, cast

from observatory.engine.backend import now
from observatory.engine.errors import EngineError, Interrupted, StepFailed, UnsupportedError
from observatory.engine.plan import DiagnosticEvent, Event, Operation, Step, StepEvent
from observatory.engine.providers import DYNAMIC, PROVIDER_TYPE, Diff, Provider, ProviderError
from observatory.engine.snapshot import ResourceState, Snapshot
from observatory.engine.values import (
    UNKNOWN,
    Properties,
    PropertyChange,
    differences,
    is_secret,
    keep_ignored,
    keep_secret,
    make_secret,
    parse_path,
    path_covers,
    reveal,
    scrub,
)

STACK_TYPE = "pulumi:pulumi:Stack"
_PROTECTED = "it is protected; take `protect` off its options and run up first"
_PENDING: dict[Operation, str] = {
    "create": "creating",
    "create-replacement": "creating",
    "update": "updating",
    "delete": "deleting",
    "delete-replaced": "deleting",
}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the program wants of one resource.

    Attributes:
        state: The resource with its declared inputs and options, no ID and no outputs.
        delete_before_replace: The program's choice, None to leave it to the provider.
        aliases: Earlier URNs it goes by, nearest first.
    """

    state: ResourceState
    delete_before_replace: bool | None = None
    aliases: tuple[str, ...] = ()


class Deployment:
    """One run over one stack. Its public methods may be called from several threads at once."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        stack: str,
        project: str,
        providers: Mapping[str, Provider],
        config: Properties,
        preview: bool,
        offline: bool,
        parallel: int,
        emit: Callable[[Event], None],
    ) -> None:
        """Set the run up.

        Args:
            snapshot: The stack's state.
            stack: The stack's name.
            project: The project's name.
            providers: Who serves each package.
            config: The stack's configuration (secrets wrapped), which dynamic providers are configured with.
            preview: Whether to plan only.
            offline: Whether to plan without anything that is not in the program.
            parallel: How many resources may be worked on at once.
            emit: Where events go.
        """
        self.snapshot = snapshot
        self.preview, self.offline = preview, offline
        self.steps: list[Step] = []
        self.failure: EngineError | None = None
        self.root: ResourceState | None = None
        self._stack, self._project = stack, project
        self._hosts, self._config = providers, config
        self._parallel, self._emit = parallel, emit
        self._slots = threading.BoundedSemaphore(parallel)
        self._lock = threading.RLock()
        self._registering = threading.RLock()  # guards the three below; may be held while asking a provider
        self._records = Provider()
        self._defaults: dict[str, str] = {}
        self._configured: set[str] = set()
        self._claimed: set[str] = set()  # URNs registered in this run
        self._matched: set[ResourceState] = set()  # old states that a registration continues
        self._gone: set[ResourceState] = set()  # old states deleted in this run
        self._deleted: set[str] = set()  # URNs deleted in this run, perhaps to come back
        self._replaced: set[str] = set()
        self._alias_of: dict[str, str] = {}
        self._current: dict[str, ResourceState] = {}
        self._stack_outputs: Properties | None = None

    # -- what the program asks for --

    def register(self, goal: Goal) -> ResourceState:
        """Bring one resource to what the program wants, and return it as it then is.

        Raises:
            StepFailed: its provider refused or failed.
            UnsupportedError: nothing here serves its package.
            Interrupted: the run is stopping.
        """
        self.check_running()
        try:
            return self._register(goal)
        except EngineError as error:
            self.stop(error)
            raise

    def register_outputs(self, urn: str, outputs: Properties) -> None:
        """Set a component's outputs; the stack's own wait for ``finish_outputs``."""
        with self._lock:
            state = self._current[urn]
        if state is self.root:
            self._stack_outputs = outputs
        else:
            self._set_outputs(state, outputs)

    def urn(self, type_: str, name: str, parent: str, *, stack: str = "", project: str = "") -> str:
        """Return the URN of a resource, of this stack unless told otherwise."""
        parent_type = parent.split("::")[2] if parent else STACK_TYPE
        qualified = type_ if parent_type == STACK_TYPE else f"{parent_type}${type_}"
        return f"urn:pulumi:{stack or self._stack}::{project or self._project}::{qualified}::{name}"

    def inherited_alias(self, parent: str, type_: str, name: str) -> str | None:
        """Return the earlier URN of a child whose parent goes by an alias, None if it does not."""
        with self._lock:
            alias = self._alias_of.get(parent)
        if alias is None:
            return None
        parent_name, alias_name = parent.rpartition("::")[2], alias.rpartition("::")[2]
        renamed = alias_name + name.removeprefix(parent_name) if name.startswith(parent_name) else name
        return self.urn(type_, renamed, alias)

    def alias_of(self, urn: str) -> str:
        """Return the URN under which a registered resource was found, its own if under no alias."""
        with self._lock:
            return self._alias_of.get(urn, urn)

    # -- what the run does besides --

    def stop(self, reason: EngineError) -> None:
        """Begin nothing more; what is in flight ends as usual."""
        with self._lock:
            self.failure = self.failure or reason

    def warn(self, message: str) -> None:
        """Pass a warning on."""
        self._emit(DiagnosticEvent(severity="warning", message=message))

    def check_running(self) -> None:
        """Raise if the run is stopping."""
        if self.failure is not None:
            raise Interrupted(f"stopped: {self.failure}") from self.failure

    def finish_outputs(self) -> None:
        """Set the stack's outputs; after a failure those it no longer names are kept."""
        if self.root is not None and self._stack_outputs is not None:
            before = self.root.outputs if self.failure else {}
            self._set_outputs(self.root, before | self._stack_outputs)

    def delete_undeclared(self) -> None:
        """Delete what the program no longer declares and what replacements left, dependents first.

        Protected resources, and what they need, stay.

        Raises:
            StepFailed: a provider failed, or a resource is protected.
        """
        condemned = [s for s in self.snapshot.base if (s.delete or s not in self._matched) and s not in self._gone]
        protected = [state for state in condemned if state.protect and not state.delete]
        kept = _closure(protected, condemned)
        self._deleted |= {state.urn for state in condemned if state not in kept}
        for level in _levels([state for state in condemned if state not in kept]):
            with ThreadPoolExecutor(self._parallel) as pool:
                for _ in pool.map(self._delete_condemned, level):
                    self.check_running()
        for state in protected:
            self._refuse("delete", state, _PROTECTED)

    def refresh(self) -> None:
        """Read every resource, and take what is found into the state.

        Raises:
            StepFailed: a provider failed; then the state stays as it was.
        """
        with ThreadPoolExecutor(self._parallel) as pool:
            found = list(pool.map(self._read, self.snapshot.base))
        self.snapshot.rebase(_without_dangling([state for state in found if state is not None]))

    # -- one resource --

    def _register(self, goal: Goal) -> ResourceState:
        new = goal.state
        if new.custom and not new.provider and not new.type.startswith(PROVIDER_TYPE):
            new.provider = self._default_provider(new)
        old = self._claim(goal)
        with self._slots:
            self._bring_about(goal, old)
        with self._lock:
            self._current[new.urn] = new
            if new.type == STACK_TYPE:
                self.root = new
        return new

    def _claim(self, goal: Goal) -> ResourceState | None:
        """Take the URN for this run, and return the old state that the resource continues."""
        urn = goal.state.urn
        with self._lock:
            if urn in self._claimed:
                self._refuse("register", goal.state, "duplicate resource: give it a name of its own")
            self._claimed.add(urn)
            old = next((self._olds[name] for name in (urn, *goal.aliases) if name in self._olds), None)
            if old is None:
                return None
            if old in self._matched:
                self._refuse("register", goal.state, f"another resource already claims to have been {old.urn}")
            self._matched.add(old)
            if old.urn != urn:
                self._alias_of[urn] = old.urn
            return old

    @cached_property
    def _olds(self) -> dict[str, ResourceState]:
        return {state.urn: state for state in self.snapshot.base if not state.delete}

    def _bring_about(self, goal: Goal, old: ResourceState | None) -> None:
        new, declared = goal.state, goal.state.inputs
        if old is None or old.urn in self._deleted:
            self._check(new, {}, declared)
            self._create(new, replacing=old)
            return
        new.created, new.modified = old.created, old.modified
        self._check(new, old.inputs, keep_ignored(declared, old.inputs, new.ignore_changes))
        diff = self._diff(old, new)
        if diff.replaces or old.pending_replacement:
            self._replace(goal, old, declared, diff)
        elif diff.changes:
            self._update(old, new)
        else:
            self._keep(old, new)

    def _check(self, new: ResourceState, olds: Properties, news: Properties) -> None:
        if not new.custom:
            new.inputs = news
            return
        inputs, failures = self._ask("check", new, lambda p: p.check(new.urn, reveal(olds), reveal(news)))
        if failures:
            self._refuse("check", new, "; ".join(f"{name}: {reason}" if name else reason for name, reason in failures))
        new.inputs = keep_secret(inputs, news)

    def _diff(self, old: ResourceState, new: ResourceState) -> Diff:
        if forced := self._forced_replacement(old, new):
            return Diff(changes=True, replaces=(forced,))
        if not new.custom:
            return Diff(changes=reveal(old.inputs) != reveal(new.inputs))
        return self._ask_diff(old, new.inputs, new)

    def _forced_replacement(self, old: ResourceState, new: ResourceState) -> str:
        """Return the property to blame for a replacement that no provider needs to be asked about."""
        with self._lock:
            reasons = {
                "provider": bool(old.provider) != bool(new.provider),
                "id": bool(old.extra.get("taint")),
                "replaceWith": bool(self._replaced & set(new.replace_with)),
                "deletedWith": new.deleted_with in self._replaced,
            }
        return next((name for name, holds in reasons.items() if holds), "")

    def _ask_diff(self, old: ResourceState, news: Properties, options: ResourceState) -> Diff:
        """Ask the provider, then apply the options (of the new state, if there is one)."""
        olds = reveal(old.inputs), reveal(old.outputs)
        diff: Diff = self._ask("diff", options, lambda p: p.diff(old.urn, old.id, *olds, reveal(news)))
        changed = diff.changed
        if diff.changes is None:
            kept = keep_ignored(news, old.inputs, options.ignore_changes)
            changed = tuple(change.path for change in differences(old.inputs, kept))
        if not (changed if diff.changes is None else diff.changes):
            return Diff(changes=False)
        wanted = [parse_path(path) for path in options.replace_on_changes]
        forced = [path for path in changed if any(path_covers(want, parse_path(path)) for want in wanted)]
        return replace(diff, changes=True, replaces=tuple(dict.fromkeys((*diff.replaces, *forced))))

    def _read(self, old: ResourceState) -> ResourceState | None:
        """Return a resource as its provider finds it, None if it is gone."""
        self.check_running()
        step = Step(operation="refresh", urn=old.urn, type=old.type, parent=old.parent)
        if not old.custom or old.type.startswith(PROVIDER_TYPE) or old.pending_replacement or old.external:
            self._tell("done", replace(step, operation="same"))
            return old
        self._tell("started", step)
        begun = time.monotonic()
        olds = reveal(old.inputs), reveal(old.outputs)
        id_, outputs, inputs = self._ask("refresh", old, lambda p: p.read(old.urn, old.id, *olds))
        new = replace(old, id=id_, inputs=keep_secret(inputs, old.inputs), encoded=None)
        new.outputs = keep_secret(outputs, old.outputs)
        self._mark_secrets(new)
        drifted = bool(id_) and self._ask_diff(new, old.inputs, old).changes
        outcome: Operation = "delete" if not id_ else "update" if drifted else "same"
        changes = tuple(differences(old.outputs, new.outputs)) if id_ else ()
        self._tell("done", replace(step, operation=outcome, changes=changes, seconds=time.monotonic() - begun))
        if not id_:
            return None
        if new.same_as(old):
            return old
        new.modified = now()
        return new

    # -- steps --

    def _create(self, new: ResourceState, *, replacing: ResourceState | None, diff: Diff | None = None) -> None:
        def create() -> None:
            if new.custom:
                new.id, new.outputs = self._created(new)
            new.created = new.modified = now()
            self._mark_secrets(new)

        if replacing is None:
            self._step("create", new, create, new=new, changes=tuple(differences({}, new.inputs)))
            return
        changes = tuple(differences(replacing.inputs, new.inputs))
        told = Step(
            operation="replace",
            urn=new.urn,
            type=new.type,
            parent=new.parent,
            changes=changes,
            replaces=diff.replaces if diff else (),
        )
        if replacing.pending_replacement:
            self._tell("done", told)
            self._step("create-replacement", new, create, old=replacing, new=new)
        else:
            self._step("create-replacement", new, create, new=new, superseded=replacing)
            self._tell("done", told)

    def _created(self, new: ResourceState) -> tuple[str, Properties]:
        if self.preview:
            return UNKNOWN if new.type.startswith(PROVIDER_TYPE) else "", dict(new.inputs)
        timeout = new.custom_timeouts.get("create", 0)
        return self._provider(new).create(new.urn, reveal(new.inputs), timeout)

    def _update(self, old: ResourceState, new: ResourceState) -> None:
        def update() -> None:
            new.id = old.id
            if new.custom:
                new.outputs = self._updated(old, new)
                new.modified = now()
            self._mark_secrets(new)

        self._step("update", new, update, old=old, new=new, changes=tuple(differences(old.inputs, new.inputs)))

    def _updated(self, old: ResourceState, new: ResourceState) -> Properties:
        if self.preview:
            return dict(new.inputs)
        timeout = new.custom_timeouts.get("update", 0)
        return self._provider(new).update(new.urn, old.id, reveal(old.outputs), reveal(new.inputs), timeout)

    def _keep(self, old: ResourceState, new: ResourceState) -> None:
        def keep() -> None:
            new.id, new.outputs, new.extra = old.id, dict(old.outputs), old.extra
            self._mark_secrets(new)
            new.encoded = old.encoded if new.same_as(old) else None

        self._step("same", new, keep, old=old, new=new)

    def _replace(self, goal: Goal, old: ResourceState, declared: Properties, diff: Diff) -> None:
        new = goal.state
        if new.protect and old.protect:
            self._refuse("replace", new, _PROTECTED)
        with self._lock:
            self._replaced.add(new.urn)
        self._check(new, {}, declared)
        chosen = goal.delete_before_replace
        if diff.delete_before_replace if chosen is None else chosen:
            for dependent in reversed(self._condemn_dependents(old)):
                self._delete(dependent, "delete-replaced", returns=not dependent.delete)
            if not old.pending_replacement:
                self._deleted.add(old.urn)
                self._delete(old, "delete-replaced", returns=True)
        self._create(new, replacing=old, diff=diff)

    def _condemn_dependents(self, root: ResourceState) -> list[ResourceState]:
        """Return the resources that must go before ``root`` may be deleted, and come back after it does."""
        with self._lock:
            condemned, urns = [], {root.urn}
            for state in self.snapshot.base[self.snapshot.base.index(root) + 1 :]:
                if state in self._matched or state in self._gone or not self._falls_with(state, urns):
                    continue
                if state.protect:
                    self._refuse("replace", state, f"it depends on {root.urn}, which must be replaced; {_PROTECTED}")
                condemned.append(state)
                urns.add(state.urn)
            self._deleted |= urns - {root.urn}
            return condemned

    def _falls_with(self, state: ResourceState, urns: set[str]) -> bool:
        """Tell whether the deletion of ``urns`` forces the resource's replacement."""
        if not state.custom or state.external:
            return False
        if urns & {state.provider_urn, state.deleted_with, *state.replace_with}:
            return True
        lost = [key for key, needs in state.property_dependencies.items() if urns.intersection(needs)]
        return bool(lost) and bool(self._ask_diff(state, state.inputs | dict.fromkeys(lost, UNKNOWN), state).replaces)

    def _delete_condemned(self, state: ResourceState) -> None:
        if state.pending_replacement and not state.delete:
            self._step("remove-pending-replace", state, lambda: None, old=state)
        else:
            self._delete(state, "delete-replaced" if state.delete else "delete")

    def _delete(self, state: ResourceState, operation: Operation, *, returns: bool = False) -> None:
        def delete() -> None:
            kept = state.external or state.retain_on_delete or not state.custom or state.deleted_with in self._deleted
            if not kept and not self.preview:
                timeout = state.custom_timeouts.get("delete", 0)
                self._provider(state).delete(state.urn, state.id, reveal(state.outputs), timeout)

        self._step(operation, state, delete, old=None if returns else state)
        if returns:
            self.snapshot.amend(state, pending_replacement=True)
        else:
            with self._lock:
                self._gone.add(state)

    def _step(
        self,
        operation: Operation,
        state: ResourceState,
        work: Callable[[], None],
        *,
        old: ResourceState | None = None,
        new: ResourceState | None = None,
        superseded: ResourceState | None = None,
        changes: tuple[PropertyChange, ...] = (),
    ) -> None:
        """Perform one step: announce it, record it as pending, do it, save what it left."""
        self.check_running()
        step = Step(operation=operation, urn=state.urn, type=state.type, parent=state.parent, changes=changes)
        self._tell("started", step)
        begun = time.monotonic()
        if state.custom and operation in _PENDING:
            self.snapshot.begin(state, _PENDING[operation])
        try:
            work()
        except ProviderError as error:
            self.snapshot.abandon(state)
            self._fail(step, state, error)
        if superseded is not None:
            self.snapshot.amend(superseded, write=False, delete=True)
        self.snapshot.finish(state, old=old, new=new, write=operation != "same" or state.encoded is None)
        self._tell("done", replace(step, seconds=time.monotonic() - begun))

    # -- helpers --

    def _default_provider(self, state: ResourceState) -> str:
        """Return the reference of a package's default provider, registering it if need be."""
        package = state.package
        if package not in self._hosts:
            raise UnsupportedError(
                f"{state.type} {state.name!r}: the package {package!r}, which needs a provider plugin,"
            )
        with self._registering:
            if package not in self._defaults:
                type_ = f"{PROVIDER_TYPE}{package}"
                inputs = self._config if package == DYNAMIC else _of_package(self._config, package)
                record = ResourceState(urn=self.urn(type_, "default", ""), type=type_, custom=True, inputs=inputs)
                self.register(Goal(state=record))
                self._defaults[package] = f"{record.urn}::{record.id}"
            return self._defaults[package]

    def _provider(self, state: ResourceState) -> Provider:
        """Return who serves a resource, configured."""
        if state.type.startswith(PROVIDER_TYPE):
            return self._records
        if state.package not in self._hosts:
            raise UnsupportedError(f"{state.type} {state.name!r}: the package {state.package!r}, which needs a plugin,")
        with self._registering:
            if state.package not in self._configured:
                record = self._current.get(state.provider_urn) or self._olds.get(state.provider_urn)
                self._hosts[state.package].configure(record.inputs if record else {})
                self._configured.add(state.package)
        return self._hosts[state.package]

    def _ask(self, what: str, state: ResourceState, call: Callable[[Provider], Any]) -> Any:
        try:
            return call(self._provider(state))
        except ProviderError as error:
            self._refuse(what, state, str(error), error.detail)

    def _refuse(self, what: str, state: ResourceState, reason: str, detail: str = "") -> NoReturn:
        """Fail a resource before any step of it began."""
        step = Step(operation=cast("Operation", what), urn=state.urn, type=state.type, parent=state.parent)
        self._fail(step, state, ProviderError(reason, detail))

    def _fail(self, step: Step, state: ResourceState, error: ProviderError) -> NoReturn:
        reason, detail = scrub(str(error), state.inputs), scrub(error.detail, state.inputs)
        message = f"{step.operation} {step.type} {step.name}: {reason}"
        failure = StepFailed(message, urn=step.urn, operation=step.operation, detail=detail)
        self.stop(failure)
        self._tell("failed", step, reason)
        raise failure from None  # the cause may name secrets

    def _tell(self, status: Literal["started", "done", "failed"], step: Step, message: str = "") -> None:
        if step.type.startswith(PROVIDER_TYPE) and step.name == "default":
            return  # the CLI, too, keeps default providers to itself
        with self._lock:
            if status == "done":
                self.steps.append(step)
        self._emit(StepEvent(status=status, step=step, message=message))

    def _mark_secrets(self, state: ResourceState) -> None:
        keep_secret(state.outputs, state.inputs)
        for name in state.additional_secret_outputs:
            if name in state.outputs and not is_secret(state.outputs[name]):
                state.outputs[name] = make_secret(state.outputs[name])

    def _set_outputs(self, state: ResourceState, outputs: Properties) -> None:
        if state.outputs != outputs:
            self.snapshot.amend(state, outputs=outputs)


def _of_package(config: Properties, package: str) -> Properties:
    return {key.partition(":")[2]: value for key, value in config.items() if key.startswith(f"{package}:")}


def _levels(states: list[ResourceState]) -> list[list[ResourceState]]:
    """Group resources (dependencies first) into levels to delete in turn: each level needs only later ones."""
    depth: dict[ResourceState, int] = {}
    named: dict[str, list[ResourceState]] = {}
    for state in states:
        needed = [other for urn in state.needs() for other in named.get(urn, ())]
        depth[state] = 1 + max((depth[other] for other in needed), default=0)
        named.setdefault(state.urn, []).append(state)
    levels = range(max(depth.values(), default=0), 0, -1)
    return [[state for state in states if depth[state] == level] for level in levels]


def _closure(roots: list[ResourceState], states: list[ResourceState]) -> set[ResourceState]:
    """Return the roots and whatever they need, directly or not, among ``states`` (dependencies first)."""
    found, needed = set(roots), set[str]()
    for state in reversed(states):
        if state in found or state.urn in needed:
            found.add(state)
            needed |= state.needs()
    return found


def _without_dangling(states: list[ResourceState]) -> list[ResourceState]:
    """Return the resources without references to ones that are not among those before them."""
    alive: set[str] = set()
    kept = []
    for state in states:
        missing = state.needs() - alive
        kept.append(_forget(state, missing) if missing else state)
        alive.add(state.urn)
    return kept


def _forget(state: ResourceState, urns: set[str]) -> ResourceState:
    def left(names: list[str]) -> list[str]:
        return [name for name in names if name not in urns]

    return replace(
        state,
        parent="" if state.parent in urns else state.parent,
        deleted_with="" if state.deleted_with in urns else state.deleted_with,
        dependencies=left(state.dependencies),
        replace_with=left(state.replace_with),
        property_dependencies={key: left(names) for key, names in state.property_dependencies.items()},
        encoded=None,
    )
