"""Turns the resources that a program declares into steps, and performs them.

Owns the semantics: which operation a resource needs (pkg/resource/deploy/step_generator.go in Pulumi's source), in
which order things are deleted, what a failure leaves. Writing the state is ``snapshot``'s, the work itself a
provider's, and talking to the program ``monitor``'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import dropwhile
from typing import Any, Literal, NoReturn, cast

from observatory.engines.embedded import values
from observatory.engines.embedded.backend import now
from observatory.engines.embedded.errors import EngineError, Interrupted, StepFailed, UnsupportedError
from observatory.engines.embedded.plan import Emitter, Operation, Step, StepEvent
from observatory.engines.embedded.providers import DYNAMIC, PROVIDER_TYPE, Diff, Provider, ProviderError
from observatory.engines.embedded.snapshot import Snapshot, State
from observatory.engines.embedded.values import UNKNOWN, Properties, differences, reveal

STACK_TYPE = "pulumi:pulumi:Stack"
_PROTECTED = "it is protected; take `protect` off its options and run up first"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the program wants of one resource.

    Attributes:
        state: The resource with its declared inputs and options, no ID and no outputs.
        delete_before_replace: The program's choice, None to leave it to the provider.
        aliases: Earlier URNs it goes by, nearest first.
    """

    state: State
    delete_before_replace: bool | None = None
    aliases: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False)
class Deployment:
    """One run over one stack. Its public methods may be called from several threads at once.

    Attributes:
        snapshot: The stack's state.
        stack: The stack's name.
        project: The project's name.
        providers: Who serves a package, for those that somebody serves already.
        packages: What makes the provider of each other package that is served, when it is first asked for.
        config: The stack's configuration (secrets wrapped), which dynamic providers are configured with.
        preview: Whether to plan only.
        offline: Whether to plan without anything that is not in the program.
        parallel: How many resources may be worked on at once.
        emit: Where events go.
        steps: What was done, in the order in which it ended.
        failure: Why the run stops, if it does.
    """

    snapshot: Snapshot
    stack: str
    project: str
    providers: dict[str, Provider]
    packages: Mapping[str, Callable[[], Provider]]
    config: Properties
    preview: bool
    offline: bool
    parallel: int
    emit: Emitter
    steps: list[Step] = field(default_factory=list)
    failure: EngineError | None = None

    def __post_init__(self) -> None:
        self._slots = threading.BoundedSemaphore(self.parallel)
        self._lock = threading.RLock()
        self._registering = threading.RLock()  # guards the two below; may be held while asking a provider
        self._defaults: dict[str, str] = {}
        self._configured: set[str] = set()
        self._former: dict[str, str] = {}  # URNs registered in this run, to those under which their old state was found
        self._current: dict[str, State] = {}
        self._deleted: set[str] = set()  # URNs deleted in this run, perhaps to come back
        self._replaced: set[str] = set()
        self._stack_outputs: Properties | None = None

    # -- what the program asks for --

    def register(self, goal: Goal) -> State:
        """Bring one resource to what the program wants, and return it as it then is.

        Raises:
            StepFailed: its provider refused or failed.
            UnsupportedError: nothing here serves its package.
            Interrupted: the run is stopping.
        """
        self.check_running()
        new, is_provider = goal.state, goal.state.type.startswith(PROVIDER_TYPE)
        try:
            if new["custom"] and not new["provider"] and not is_provider:
                new["provider"] = self._default_provider(new)
            old = self._claim(goal)
            # A default provider is registered under a lock that those who hold the slots may wait for.
            with nullcontext() if is_provider else self._slots:
                self._bring_about(goal, old)
        except EngineError as error:
            self.stop(error)
            raise
        with self._lock:
            self._current[new.urn] = new
        return new

    def register_outputs(self, urn: str, outputs: Properties) -> None:
        """Set a component's outputs; the stack's own wait for ``finish_outputs``."""
        state = self._current[urn]
        if state.type == STACK_TYPE:
            self._stack_outputs = outputs
        elif state["outputs"] != outputs:
            self.snapshot.amend(state, outputs=outputs)

    def urn(self, type_: str, name: str, parent: str, *, stack: str = "", project: str = "") -> str:
        """Return the URN of a resource, of this stack unless told otherwise."""
        parent_type = parent.split("::")[2] if parent else STACK_TYPE
        qualified = type_ if parent_type == STACK_TYPE else f"{parent_type}${type_}"
        return f"urn:pulumi:{stack or self.stack}::{project or self.project}::{qualified}::{name}"

    def former_urn(self, urn: str) -> str:
        """Return the URN under which a registered resource's old state was found; its own if there was none."""
        with self._lock:
            return self._former.get(urn, urn)

    # -- what the run does besides --

    def stop(self, reason: EngineError) -> None:
        """Begin nothing more; what is in flight ends as usual."""
        with self._lock:
            self.failure = self.failure or reason

    def check_running(self) -> None:
        """Raise if the run is stopping."""
        if self.failure is not None:
            raise Interrupted(f"stopped: {self.failure}") from self.failure

    def finish_outputs(self) -> None:
        """Set the stack's outputs; after a failure those it no longer names are kept."""
        root = next((state for state in self._current.values() if state.type == STACK_TYPE), None)
        if root is not None and self._stack_outputs is not None:
            outputs = (root["outputs"] if self.failure else {}) | self._stack_outputs
            if root["outputs"] != outputs:
                self.snapshot.amend(root, outputs=outputs)

    def delete_undeclared(self) -> None:
        """Delete what the program no longer declares and what replacements left, dependents first.

        Protected resources, and what they need, stay.

        Raises:
            StepFailed: a provider failed, or a resource is protected.
        """
        protected = [state for state in self.snapshot.olds if state["protect"] and not state["delete"]]
        condemned = _without_needs(self.snapshot.olds, protected)
        self._deleted |= {state.urn for state in condemned}
        for level in _levels(condemned):
            with ThreadPoolExecutor(self.parallel) as pool:
                for _ in pool.map(self._delete_condemned, level):
                    self.check_running()
        for state in protected:
            self._refuse("delete", state, _PROTECTED)

    def refresh(self) -> None:
        """Read every resource, and take what is found into the state.

        Raises:
            StepFailed: a provider failed; then the state stays as it was.
        """
        with ThreadPoolExecutor(self.parallel) as pool:
            found = [state for state in pool.map(self._read, self.snapshot.olds) if state is not None]
        alive: set[str] = set()
        for number, state in enumerate(found):
            found[number] = state.referring(dict.fromkeys(state.needs() - alive, ""))
            alive.add(state.urn)
        self.snapshot.rebase(found)

    # -- one resource --

    def _claim(self, goal: Goal) -> State | None:
        """Take the URN for this run, and return the old state that the resource continues."""
        urn = goal.state.urn
        with self._lock:
            if urn in self._former:
                self._refuse("register", goal.state, "duplicate resource: give it a name of its own")
            former = next((name for name in (urn, *goal.aliases) if name in self._olds), urn)
            if former in self._olds and former in self._former.values():
                self._refuse("register", goal.state, f"another resource already claims to have been {former}")
            self._former[urn] = former
            return self._olds.get(former)

    @cached_property
    def _olds(self) -> dict[str, State]:
        return {state.urn: state for state in self.snapshot.olds if not state["delete"]}

    def _bring_about(self, goal: Goal, old: State | None) -> None:
        new, declared = goal.state, goal.state["inputs"]
        if old is None or old.urn in self._deleted:
            self._check(new, {}, declared)
            self._create(new, old)
            return
        new |= {key: old[key] for key in ("created", "modified") if key in old}
        self._check(new, old["inputs"], values.keep_ignored(declared, old["inputs"], new["ignoreChanges"]))
        diff = self._diff(old, new)
        if diff.replaces or old["pendingReplacement"]:
            self._replace(goal, old, declared, diff)
        elif diff.changes:
            self._update(old, new)
        else:
            self._keep(old, new)

    def _check(self, new: State, olds: Properties, news: Properties) -> None:
        new["inputs"] = news
        if new["custom"]:
            inputs, failures = self._ask("check", new, lambda p: p.check(new.urn, reveal(olds), reveal(news)))
            if failures:
                reasons = (f"{name}: {reason}" if name else reason for name, reason in failures)
                self._refuse("check", new, "; ".join(reasons))
            new["inputs"] = values.keep_secret(inputs, news)

    def _diff(self, old: State, new: State) -> Diff:
        if forced := self._forced_replacement(old, new):
            return Diff(changes=True, replaces=(forced,))
        if not new["custom"]:
            return Diff(changes=reveal(old["inputs"]) != reveal(new["inputs"]))
        return self._ask_diff(old, new["inputs"], new)

    def _forced_replacement(self, old: State, new: State) -> str:
        """Return the property to blame for a replacement that no provider needs to be asked about."""
        with self._lock:
            reasons = {
                "provider": bool(old["provider"]) != bool(new["provider"]),
                "id": old["taint"],
                "replaceWith": self._replaced & set(new["replaceWith"]),
                "deletedWith": new["deletedWith"] in self._replaced,
            }
        return next((name for name, holds in reasons.items() if holds), "")

    def _ask_diff(self, old: State, news: Properties, options: State) -> Diff:
        """Ask the provider, then apply the options (of the new state, if there is one)."""
        olds = reveal(old["inputs"]), reveal(old["outputs"])
        diff: Diff = self._ask("diff", options, lambda p: p.diff(old.urn, old["id"], *olds, reveal(news)))
        changed, changes = diff.changed, diff.changes
        if changes is None:
            kept = values.keep_ignored(news, old["inputs"], options["ignoreChanges"])
            changed = tuple(change.path for change in differences(old["inputs"], kept))
            changes = bool(changed)
        if not changes:
            return Diff(changes=False)
        wanted = [values.parse_path(path) for path in options["replaceOnChanges"]]
        forced = [path for path in changed if any(values.path_covers(want, values.parse_path(path)) for want in wanted)]
        return replace(diff, changes=True, replaces=tuple(dict.fromkeys((*diff.replaces, *forced))))

    def _read(self, old: State) -> State | None:
        """Return a resource as its provider finds it, None if it is gone."""
        self.check_running()
        step = _step("refresh", old)
        if old.type.startswith(PROVIDER_TYPE) or not _is_managed(old) or old["pendingReplacement"]:
            self._tell("done", replace(step, operation="same"))
            return old
        self._tell("started", step)
        begun = time.monotonic()
        olds = reveal(old["inputs"]), reveal(old["outputs"])
        id_, outputs, inputs = self._ask("refresh", old, lambda p: p.read(old.urn, old["id"], *olds))
        new = State(old | {"id": id_, "inputs": values.keep_secret(inputs, old["inputs"])})
        self._set_outputs(new, values.keep_secret(outputs, old["outputs"]))
        drifted = id_ and self._ask_diff(new, old["inputs"], old).changes
        outcome: Operation = "update" if drifted else "same" if id_ else "delete"
        changes = tuple(differences(old["outputs"], new["outputs"])) if id_ else ()
        self._tell("done", replace(step, operation=outcome, changes=changes, seconds=time.monotonic() - begun))
        if not id_:
            return None
        return old if new == old else State(new | {"modified": now()})

    # -- steps --

    def _create(self, new: State, replacing: State | None, diff: Diff | None = None) -> None:
        def create() -> None:
            if new["custom"]:
                new["id"], outputs = self._created(new)
                self._set_outputs(new, outputs)
            new["created"] = new["modified"] = now()

        if replacing is None:
            self._perform(_step("create", new, {}), new, create, new=new)
            return
        step = _step("create-replacement", new)
        told = replace(_step("replace", new, replacing["inputs"]), replaces=diff.replaces if diff else ())
        if replacing["pendingReplacement"]:
            self._tell("done", told)
            self._perform(step, new, create, old=replacing, new=new)
        else:
            self._perform(step, new, create, old=replacing, new=new, mark="delete")
            self._tell("done", told)

    def _created(self, new: State) -> tuple[str, Properties]:
        if self.preview:
            return UNKNOWN if new.type.startswith(PROVIDER_TYPE) else "", dict(new["inputs"])
        return self._provider(new).create(new.urn, reveal(new["inputs"]), _timeout(new, "create"))

    def _update(self, old: State, new: State) -> None:
        def update() -> None:
            new["id"] = old["id"]
            if new["custom"]:
                self._set_outputs(new, self._updated(old, new))
                new["modified"] = now()

        self._perform(_step("update", new, old["inputs"]), new, update, old=old, new=new)

    def _updated(self, old: State, new: State) -> Properties:
        if self.preview:
            return dict(new["inputs"])
        olds, news = reveal(old["outputs"]), reveal(new["inputs"])
        return self._provider(new).update(new.urn, old["id"], olds, news, _timeout(new, "update"))

    def _keep(self, old: State, new: State) -> None:
        def keep() -> None:
            new.update({key: value for key, value in old.items() if key not in new}, id=old["id"])
            self._set_outputs(new, dict(old["outputs"]))

        self._perform(_step("same", new), new, keep, old=old, new=new)

    def _replace(self, goal: Goal, old: State, declared: Properties, diff: Diff) -> None:
        new = goal.state
        if new["protect"] and old["protect"]:
            self._refuse("replace", new, _PROTECTED)
        with self._lock:
            self._replaced.add(new.urn)
        self._check(new, {}, declared)
        chosen = goal.delete_before_replace
        if diff.delete_before_replace if chosen is None else chosen:
            for dependent in reversed(self._condemn_dependents(old)):
                self._delete(dependent, "delete-replaced", mark="" if dependent["delete"] else "pendingReplacement")
            if not old["pendingReplacement"]:
                self._deleted.add(old.urn)
                self._delete(old, "delete-replaced", mark="pendingReplacement")
        self._create(new, old, diff)

    def _condemn_dependents(self, root: State) -> list[State]:
        """Return the resources that must go before ``root`` may be deleted, and come back after it does."""
        with self._lock:
            condemned, urns, claimed = list[State](), {root.urn}, set(self._former.values())
            for state in dropwhile(lambda state: state is not root, self.snapshot.olds):
                is_settled = not state["delete"] and (state.urn in claimed or state["pendingReplacement"])
                if is_settled or not self._falls_with(state, urns):
                    continue
                if state["protect"]:
                    self._refuse("replace", state, f"it depends on {root.urn}, which must be replaced; {_PROTECTED}")
                condemned.append(state)
                urns.add(state.urn)
            self._deleted |= urns - {root.urn}
            return condemned

    def _falls_with(self, state: State, urns: set[str]) -> bool:
        """Tell whether the deletion of ``urns`` forces the resource's replacement."""
        if not _is_managed(state):
            return False
        if urns & {state.provider_urn, state["deletedWith"], *state["replaceWith"]}:
            return True
        lost = [key for key, needs in state["propertyDependencies"].items() if urns.intersection(needs)]
        unknown = state["inputs"] | dict.fromkeys(lost, UNKNOWN)
        return bool(lost) and bool(self._ask_diff(state, unknown, state).replaces)

    def _delete_condemned(self, state: State) -> None:
        if state["pendingReplacement"] and not state["delete"]:
            self._perform(_step("remove-pending-replace", state), state, lambda: None, old=state)
        else:
            self._delete(state, "delete-replaced" if state["delete"] else "delete")

    def _delete(self, state: State, operation: Operation, mark: str = "") -> None:
        def delete() -> None:
            kept = state["retainOnDelete"] or state["deletedWith"] in self._deleted
            if _is_managed(state) and not kept and not self.preview:
                outputs = reveal(state["outputs"])
                self._provider(state).delete(state.urn, state["id"], outputs, _timeout(state, "delete"))

        self._perform(_step(operation, state), state, delete, old=state, mark=mark)

    def _perform(self, step: Step, subject: State, work: Callable[[], None], **left: Any) -> None:
        """Perform one step: announce it, record it as pending, do it, save what it left (see ``Snapshot.end``)."""
        self.check_running()
        self._tell("started", step)
        begun = time.monotonic()
        verb = step.operation.partition("-")[0]
        if subject["custom"] and verb in {"create", "update", "delete"}:
            self.snapshot.begin(subject, f"{verb[:-1]}ing")
        try:
            work()
        except ProviderError as error:
            self.snapshot.end(subject)
            self._fail(step, subject, error)
        self.snapshot.end(subject, **left)
        self._tell("done", replace(step, seconds=time.monotonic() - begun))

    # -- helpers --

    def _default_provider(self, state: State) -> str:
        """Return the reference of a package's default provider, registering it if need be."""
        self._server(state)
        package, type_ = state.package, f"{PROVIDER_TYPE}{state.package}"
        with self._registering:
            if package not in self._defaults:
                own = {key.partition(":")[2]: v for key, v in self.config.items() if key.startswith(f"{package}:")}
                inputs = self.config if package == DYNAMIC else own
                record = State({"urn": self.urn(type_, "default", ""), "type": type_, "custom": True, "inputs": inputs})
                self.register(Goal(state=record))
                self._defaults[package] = f"{record.urn}::{record['id']}"
            return self._defaults[package]

    def _server(self, state: State) -> Provider:
        """Return who serves a resource."""
        package = state.package
        if state.type.startswith(PROVIDER_TYPE) or (self.offline and package not in self.providers):
            return Provider()
        if package not in self.providers.keys() | self.packages.keys():
            name = state.urn.rpartition("::")[2]
            raise UnsupportedError(f"{state.type} {name!r}: the package {package!r}, which needs a plugin,")
        with self._registering:
            if package not in self.providers:
                self.providers[package] = self.packages[package]()
            return self.providers[package]

    def _provider(self, state: State) -> Provider:
        """Return who serves a resource, configured."""
        provider, urn = self._server(state), state.provider_urn
        with self._registering:
            if urn and state.package not in self._configured:
                record = self._current.get(urn) or self._olds.get(urn)
                provider.configure(record["inputs"] if record else {})
                self._configured.add(state.package)
        return provider

    def _ask(self, what: str, state: State, call: Callable[[Provider], Any]) -> Any:
        try:
            return call(self._provider(state))
        except ProviderError as error:
            self._refuse(what, state, str(error), error.detail)

    def _refuse(self, what: str, state: State, reason: str, detail: str = "") -> NoReturn:
        """Fail a resource before any step of it began."""
        self._fail(_step(cast("Operation", what), state), state, ProviderError(reason, detail))

    def _fail(self, step: Step, state: State, error: ProviderError) -> NoReturn:
        reason, detail = values.scrub(str(error), state["inputs"]), values.scrub(error.detail, state["inputs"])
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
        self.emit(StepEvent(status=status, step=step, message=message))

    def _set_outputs(self, state: State, outputs: Properties) -> None:
        """Set what a provider returned, marking what must be secret."""
        state["outputs"] = values.keep_secret(outputs, state["inputs"])
        for name in state["additionalSecretOutputs"]:
            if name in outputs and not values.is_secret(outputs[name]):
                outputs[name] = values.make_secret(outputs[name])


def _step(operation: Operation, state: State, olds: Properties | None = None) -> Step:
    """Return a step on a resource; given its old inputs, one that tells how they change."""
    changes = () if olds is None else tuple(differences(olds, state["inputs"]))
    return Step(operation=operation, urn=state.urn, type=state.type, parent=state["parent"], changes=changes)


def _timeout(state: State, operation: str) -> float:
    return float(state["customTimeouts"].get(operation, 0))


def _is_managed(state: State) -> bool:
    """Tell whether a provider made the resource for this stack; components are not, nor is what was only read."""
    return bool(state["custom"]) and not state["external"]


def _levels(states: list[State]) -> Iterator[list[State]]:
    """Yield resources (dependencies first) in levels to delete in turn: each is needed by earlier levels only."""
    while states:
        needed: set[str] = set()
        level, later = list[State](), list[State]()
        for state in reversed(states):
            (later if state.urn in needed else level).append(state)
            needed |= state.needs()
        yield level
        states = later[::-1]


def _without_needs(states: list[State], roots: list[State]) -> list[State]:
    """Return the resources (dependencies first) but for the roots and whatever those need, directly or not."""
    left, needed = list[State](), set[str]()
    for state in reversed(states):
        if state.urn in needed or any(state is root for root in roots):
            needed |= state.needs()
        else:
            left.append(state)
    return left[::-1]
