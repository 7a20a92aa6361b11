"""What a run promises around its steps: lock, crash, interruption, bad state, configuration, events, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from observatory.engines import embedded as engine
from observatory.engines.embedded import DiagnosticEvent, StackOptions, StepEvent
from observatory.engines.embedded.__main__ import main
from observatory.files.atomic import partial_path
from tests.engines.embedded.conftest import MakeLab
from tests.engines.embedded.lab import STACK, Lab

TWO = 'a = Thing("a", key=Output.secret("hush-hush"))\nb = Thing("b", size=a.twice)\npulumi.export("twice", b.twice)\n'
HELD = 'a = Thing("a")\nb = Thing("b", Options(depends_on=[a]), wait="go")\nc = Thing("c", Options(depends_on=[b]))\n'


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def start(lab: Lab, operation: str = "up") -> subprocess.Popen[str]:
    """Start an operation on the embedded engine in a process of its own."""
    lab.embedded_calls()
    return subprocess.Popen(
        [sys.executable, "-m", "observatory.engines.embedded", operation, "--stack", STACK, "--json"],
        cwd=lab.project,
        env=lab.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def diagnostics(lab: Lab) -> list[tuple[str, str]]:
    return [(event.severity, event.message) for event in lab.events if isinstance(event, DiagnosticEvent)]


def host_pids(lab: Lab) -> list[int]:
    """Return the processes that host this lab's dynamic providers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if f"ENGINE_LAB={lab.home}\0".encode() in environment and b"pulumi.dynamic" in command:
            found.append(int(path.parent.name))
    return found


class TestLock:
    def test_a_held_lock_refuses_and_names_its_holder(self, lab: Lab) -> None:
        lab.program(HELD)
        first = start(lab)
        eventually(lambda: '["create", {"name": "b"' in lab.log())
        second = lab.embedded("up")
        assert second.failed
        assert f"pid {first.pid}" in second.message
        assert str(lab.locks[0]) in second.message
        (lab.home / "go").touch()
        output, _ = first.communicate(timeout=60)
        assert first.returncode == 0
        assert json.loads(output)["summary"] == {"create": 4}
        assert lab.locks == []

    def test_preview_needs_no_lock(self, lab: Lab) -> None:
        self.leave_lock(lab, pid=1)
        lab.program(TWO)
        assert not lab.embedded("preview").failed

    @pytest.mark.parametrize("who", ["dead", "reused pid"])
    def test_a_lock_whose_process_is_gone_is_taken_over(self, lab: Lab, who: str) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        pid = gone.pid if who == "dead" else os.getpid()
        self.leave_lock(lab, pid=pid, timestamp="2020-01-02T03:04:05.123456789+01:00")
        lab.program(TWO)
        assert not lab.embedded("up").failed
        assert any(severity == "warning" and f"pid {pid}" in text for severity, text in diagnostics(lab))
        assert lab.locks == []

    def test_another_hosts_lock_is_left_alone(self, lab: Lab) -> None:
        path = self.leave_lock(lab, pid=1, hostname="elsewhere")
        lab.program(TWO)
        outcome = lab.embedded("up")
        assert outcome.failed
        assert "elsewhere" in outcome.message
        assert path.exists()

    @pytest.mark.cli
    def test_the_cli_honours_ours(self, lab: Lab) -> None:
        lab.program(HELD)
        lab.pulumi("stack", "init", STACK)
        ours = start(lab)
        eventually(lambda: '["create", {"name": "b"' in lab.log())
        assert f"pid {ours.pid}" in lab.cli("up").message
        (lab.home / "go").touch()
        ours.communicate(timeout=60)
        assert ours.returncode == 0

    @staticmethod
    def leave_lock(lab: Lab, **fields: Any) -> Path:
        directory = lab.backend / ".pulumi/locks/organization/lab" / STACK
        directory.mkdir(parents=True)
        holder = {"username": "me", "hostname": socket.gethostname(), "timestamp": "2026-01-02T03:04:05Z"} | fields
        (directory / "left.json").write_text(json.dumps(holder))
        return directory / "left.json"


class TestInterruption:
    def test_kill_9_in_a_creation_leaves_a_pending_operation_that_the_next_run_names_and_repeats(
        self, lab: Lab
    ) -> None:
        lab.program(HELD)
        killed = start(lab)
        eventually(lambda: '["create", {"name": "b"' in lab.log())
        killed.kill()
        killed.communicate()
        pending = lab.state()["pending_operations"]
        assert [(op["type"], op["resource"]["urn"].rpartition("::")[2]) for op in pending] == [("creating", "b")]
        assert lab.names() == ["a"]
        eventually(lambda: not host_pids(lab))
        (lab.home / "go").touch()
        outcome = lab.embedded("up")
        assert outcome.steps == ["create b", "create c"]
        assert any("interrupted while creating" in text for _, text in diagnostics(lab))
        assert "pending_operations" not in lab.state()

    @pytest.mark.cli
    def test_the_cli_carries_on_after_kill_9(self, lab: Lab) -> None:
        lab.program(HELD)
        killed = start(lab)
        eventually(lambda: '["create", {"name": "b"' in lab.log())
        killed.kill()
        killed.communicate()
        for lock in lab.locks:
            lock.unlink()
        (lab.home / "go").touch()
        outcome = lab.cli("up")
        assert outcome.steps == ["create b", "create c"]
        assert "interrupted while creating" in outcome.message
        assert lab.embedded("up").steps == []

    def test_a_second_interrupt_breaks_off_what_does_not_end(self, lab: Lab) -> None:
        lab.program(HELD)
        run = start(lab)
        eventually(lambda: '["create", {"name": "b"' in lab.log())
        run.send_signal(signal.SIGINT)
        assert run.stderr
        assert any("Ctrl-C once more" in line for line in run.stderr)
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=60)
        assert json.loads(output)["error"]["type"] == "Interrupted"
        assert lab.names() == ["a"]
        assert lab.locks == []
        assert host_pids(lab) == []
        (lab.home / "go").touch()
        assert lab.embedded("up").steps == ["create b", "create c"]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_lets_the_step_in_flight_end_and_begins_no_more(self, lab: Lab, number: signal.Signals) -> None:
        lab.program(HELD)
        run = start(lab)
        eventually(lambda: '["create", {"name": "b"' in lab.log())
        run.send_signal(number)
        (lab.home / "go").touch()
        output, _ = run.communicate(timeout=60)
        assert run.returncode == 1
        assert json.loads(output)["error"]["type"] == "Interrupted"
        assert lab.names() == ["a", "b"]
        assert "pending_operations" not in lab.state()
        assert lab.locks == []
        assert lab.embedded("up").steps == ["create c"]


class TestParallel:
    def test_independent_resources_are_created_side_by_side(self, lab: Lab) -> None:
        lab.program('Thing("a", wait="both")\nThing("b", wait="both")\n')
        run = start(lab)
        eventually(lambda: lab.log().count('["create", ') == 2)
        (lab.home / "both").touch()
        output, _ = run.communicate(timeout=60)
        assert json.loads(output)["summary"] == {"create": 3}


class TestBadState:
    def test_a_state_cut_in_half_is_refused_and_kept(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        whole = lab.checkpoint.read_text()
        lab.checkpoint.write_text(whole[: len(whole) // 2])
        with pytest.raises(engine.StateError) as caught:
            engine.up(lab.options)
        assert f"{lab.checkpoint}.bak" in str(caught.value)
        assert lab.checkpoint.read_text() == whole[: len(whole) // 2]
        assert lab.locks == []

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "\x00\x00\x00\x00",
            "null",
            '{"version": 3, "checkpoint": {"latest": [1]}}',
            '{"version": 3, "checkpoint": {"latest": {"resources": 5}}}',
            '{"version": 3, "checkpoint": {"latest": {"resources": [5]}}}',
        ],
    )
    def test_a_damaged_state_is_refused_and_its_copy_works(self, lab: Lab, content: str) -> None:
        lab.program(TWO)
        lab.embedded("up")
        lab.program('a = Thing("a", size=2)')
        lab.embedded("up")
        lab.checkpoint.write_text(content)
        for operation in (engine.up, engine.preview, engine.destroy, engine.resources):
            with pytest.raises(engine.StateError, match="is damaged"):
                operation(lab.options)
        assert lab.checkpoint.read_text() == content
        lab.checkpoint.write_bytes(Path(f"{lab.checkpoint}.bak").read_bytes())
        assert lab.embedded("up").steps == ["delete b", "update a"]

    def test_a_damaged_layout_file_is_refused(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        (lab.backend / ".pulumi/meta.yaml").write_text("{")
        with pytest.raises(engine.StateError, match=r"meta\.yaml is damaged"):
            engine.up(lab.options)

    @pytest.mark.parametrize("change", [{"version": 5}, {"version": 4, "features": ["views"]}])
    def test_a_newer_state_is_refused_and_kept(self, lab: Lab, change: dict[str, Any]) -> None:
        lab.program(TWO)
        lab.embedded("up")
        newer = json.dumps(json.loads(lab.checkpoint.read_text()) | change)
        lab.checkpoint.write_text(newer)
        with pytest.raises(engine.StateError, match="does not know"):
            engine.up(lab.options)
        assert lab.checkpoint.read_text() == newer

    def test_a_state_under_another_secrets_provider_is_refused_by_its_name(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        state = json.loads(lab.checkpoint.read_text())
        state["checkpoint"]["latest"]["secrets_providers"] = {"type": "cloud", "state": {"url": "awskms://alias/x"}}
        lab.checkpoint.write_text(json.dumps(state))
        with pytest.raises(engine.UnsupportedError, match="secrets provider 'cloud'"):
            engine.up(lab.options)

    def test_a_compressed_state_is_refused_by_its_name(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        lab.checkpoint.rename(f"{lab.checkpoint}.gz")
        with pytest.raises(engine.StateError, match=r"dev\.json\.gz is compressed"):
            engine.up(lab.options)

    def test_a_wrong_passphrase_changes_nothing(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        before = lab.checkpoint.read_text()
        wrong = StackOptions(cwd=lab.project, stack=STACK, backend=lab.backend, passphrase="wrong")
        for operation in (engine.up, engine.destroy, engine.refresh):
            with pytest.raises(engine.PassphraseError, match="PULUMI_CONFIG_PASSPHRASE"):
                operation(wrong)
        with pytest.raises(engine.PassphraseError):
            engine.outputs(wrong, show_secrets=True)
        assert engine.outputs(wrong) == {"twice": 0}
        assert lab.checkpoint.read_text() == before
        assert lab.locks == []

    def test_a_full_disk_keeps_the_last_state(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        lab.program(TWO)
        lab.embedded("up")
        before = lab.checkpoint.read_text()

        def on_a_full_disk(path: Path) -> Path:
            partial = partial_path(path)
            if path == lab.checkpoint:
                partial.symlink_to("/dev/full")  # where the kernel refuses each write, full(4)
            return partial

        lab.program('Thing("new")')
        with monkeypatch.context() as patch:
            patch.setattr("observatory.engines.embedded.backend.partial_path", on_a_full_disk)
            outcome = lab.embedded("up")
        assert lab.locks == []
        assert "No space left" in outcome.message
        assert lab.checkpoint.read_text() == before


class TestStack:
    def test_an_empty_stack_is_made_once(self, lab: Lab) -> None:
        engine.init(lab.options)
        first = lab.checkpoint.read_text()
        engine.init(lab.options)
        assert lab.checkpoint.read_text() == first
        assert lab.names() == []

    @pytest.mark.cli
    def test_the_cli_finds_it(self, lab: Lab) -> None:
        engine.init(lab.options)
        lab.program(TWO)
        assert lab.cli("preview").steps == ["create a", "create b", "create lab-dev"]

    def test_a_removed_stack_leaves_nothing(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        engine.remove(lab.options)
        assert [path for path in lab.backend.rglob("*") if path.is_file() and path.name != "meta.yaml"] == []


class TestSecrets:
    def test_no_secret_is_on_disk_in_plain_text(self, lab: Lab) -> None:
        lab.program(TWO + 'pulumi.export("key", a.key)\n'.replace("a.key", 'Output.secret("hush-hush")'))
        outcome = lab.embedded("up")
        assert outcome.outputs["key"] == "hush-hush"
        files = [path for path in lab.backend.rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if b"hush-hush" in path.read_bytes()]
        assert engine.outputs(lab.options)["key"] == "[secret]"
        assert "correct horse" not in repr(lab.options)

    def test_a_providers_message_is_rid_of_secrets(self, lab: Lab) -> None:
        lab.program('Thing("a", fail="create", key=Output.secret("hush-hush"))')
        lab.embedded_calls()
        os.environ["ENGINE_LAB"] = str(lab.home)
        with pytest.raises(engine.StepFailed) as caught:
            engine.up(lab.options)
        assert str(caught.value).endswith("no create today [secret]")
        assert "hush-hush" not in "".join(traceback.format_exception(caught.value)) + caught.value.detail

    def test_an_unchanged_secret_keeps_its_ciphertext(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        before = lab.checkpoint.read_text()
        lab.embedded("up")
        assert lab.checkpoint.read_text() == before

    @pytest.mark.cli
    def test_a_salt_in_the_state_alone_serves_the_cli(self, lab: Lab) -> None:
        lab.program(TWO)
        lab.embedded("up")
        assert lab.cli("up").steps == []
        assert lab.embedded("up").steps == []


class TestConfig:
    PROGRAM = """
config = pulumi.Config()
pulumi.export("size", config.require_int("size"))
pulumi.export("flag", config.require_bool("flag"))
pulumi.export("ratio", config.require_float("ratio"))
pulumi.export("shape", config.require_object("shape"))
pulumi.export("where", [pulumi.get_project(), pulumi.get_stack(), pulumi.get_organization()])
"""
    VALUES = "config:\n  lab:size: 3\n  lab:flag: true\n  lab:ratio: 0.5\n  lab:shape: {name: box, sides: [1, 2]}\n"

    def test_values_reach_the_program(self, make_lab: MakeLab) -> None:
        lab = make_lab(self.VALUES)
        lab.program(self.PROGRAM)
        assert lab.embedded("up").outputs == {
            "size": 3,
            "flag": True,
            "ratio": 0.5,
            "shape": {"name": "box", "sides": [1, 2]},
            "where": ["lab", "dev", "organization"],
        }

    @pytest.mark.cli
    def test_secrets_and_provider_config_as_on_the_cli(self, make_lab: MakeLab) -> None:
        ours, theirs = make_lab(self.VALUES), make_lab(self.VALUES)
        body = (
            self.PROGRAM
            + 'pulumi.export("pin", config.require_secret("pin"))\nThing("a", pin=config.require_secret("pin"))\n'
        )
        for lab in (ours, theirs):
            lab.program(body)
            lab.pulumi("stack", "init", STACK)
            lab.pulumi("config", "set", "--secret", "pin", "1234")
            lab.pulumi("config", "set", "--secret", "--path", "shape.inner", "deep")
        mine, its = ours.embedded("up"), theirs.cli("up")
        assert mine.outputs == its.outputs
        assert mine.outputs["pin"] == "1234"
        assert mine.state == its.state
        assert ours.cli("preview").steps == []

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [("name: lab\n", "runtime"), ("runtime: python\n", "name"), ("name: [", "cannot read"), ("- 1\n", "mapping")],
    )
    def test_a_bad_project_file_is_named(self, lab: Lab, text: str, complaint: str) -> None:
        (lab.project / "Pulumi.yaml").write_text(text)
        with pytest.raises(engine.ConfigError, match=complaint) as caught:
            engine.preview(lab.options)
        assert "Pulumi.yaml" in str(caught.value)

    @pytest.mark.parametrize(
        ("environment", "complaint"),
        [
            ({"PULUMI_BACKEND_URL": "s3://bucket"}, "s3://bucket"),
            ({"PULUMI_BACKEND_URL": "file:///nowhere"}, "no passphrase"),
            ({"PULUMI_BACKEND_URL": "file:///x", "PULUMI_CONFIG_PASSPHRASE_FILE": "/nonexistent"}, "nonexistent"),
        ],
    )
    def test_a_bad_environment_is_named(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        environment: dict[str, str],
        complaint: str,
    ) -> None:
        for name in ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(["preview", "--stack", "dev"]) == 1
        assert re.search(complaint, capfd.readouterr().err)


class TestReport:
    def test_events_and_changes(self, lab: Lab) -> None:
        lab.program('Thing("a", size=1, key=Output.secret("hush-hush"))\npulumi.log.warn("look out")\nprint("hello")')
        lab.embedded("up")
        assert ("warning", "look out") in diagnostics(lab)
        assert ("info", "hello") in diagnostics(lab)
        steps = [(event.status, event.step.name) for event in lab.events if isinstance(event, StepEvent)]
        assert steps == [("started", "lab-dev"), ("done", "lab-dev"), ("started", "a"), ("done", "a")]
        lab.program('Thing("a", size=2, key=Output.secret("hush"))')
        result = engine.preview(lab.options)
        changes = {(change.path, change.old, change.new) for change in result.steps[-1].changes}
        assert changes == {("size", 1, 2), ("key", "[secret]", "[secret]")}
        assert result.summary == {"same": 1, "update": 1}

    def test_a_failed_step_tells_the_providers_message_without_its_frames(self, lab: Lab) -> None:
        lab.program('Thing("a")\nThing("b", fail="create")')
        os.environ["ENGINE_LAB"] = str(lab.home)
        lab.embedded_calls()
        with pytest.raises(engine.StepFailed) as caught:
            engine.up(lab.options)
        assert str(caught.value).endswith("b: no create today")
        assert caught.value.urn.endswith("::b")
        assert "Traceback" in caught.value.detail
        assert caught.value.result is not None

    def test_a_provider_that_dies_fails_its_step(self, lab: Lab) -> None:
        lab.program('Thing("a", fail="die")')
        outcome = lab.embedded("up")
        assert "host" in outcome.message
        assert "died" in outcome.message
        assert lab.names() == []

    def test_a_failed_program_shows_its_own_frames_only(self, lab: Lab) -> None:
        lab.program('def wrong():\n    raise KeyError("nothing here")\nwrong()\n')
        message = lab.embedded("up").message
        assert 'raise KeyError("nothing here")' in message
        assert "runpy" not in message

    def test_a_program_that_prints_does_not_spoil_the_json(self, lab: Lab) -> None:
        lab.program('import subprocess\nprint("noise")\nsubprocess.run(["echo", "more noise"])\npulumi.export("x", 1)')
        run = start(lab, "preview")
        output, _ = run.communicate(timeout=60)
        assert json.loads(output)["outputs"] == {"x": 1}

    def test_resources_read_from_the_state(self, lab: Lab) -> None:
        lab.program('Thing("a", Options(protect=True), key=Output.secret("hush-hush"))')
        lab.embedded("up")
        (record,) = [record for record in engine.resources(lab.options) if record.name == "a"]
        assert record.protect
        assert record.outputs["key"] == "[secret]"
        assert "__provider" not in record.outputs
        [shown] = [record for record in engine.resources(lab.options, show_secrets=True) if record.name == "a"]
        assert shown == replace(record, outputs={**record.outputs, "key": "hush-hush"})

    def test_a_changed_module_is_seen_by_the_next_run_in_the_process(self, lab: Lab) -> None:
        lab.program('import part\npulumi.export("x", part.VALUE)')
        (lab.project / "part.py").write_text("VALUE = 1\n")
        assert lab.embedded("up").outputs == {"x": 1}
        (lab.project / "part.py").write_text("VALUE = 22\n")
        assert lab.embedded("up").outputs == {"x": 22}


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "feature"),
        [
            ('pulumi.StackReference("organization/other/dev")', "StackReference"),
            ('Thing("a", Options(import_="x"))', "import_"),
            ('Thing("a", Options(transforms=[lambda args: None]))', "transforms"),
            ("pulumi.runtime.register_resource_transform(lambda args: None)", "transform"),
            ('Thing("a", Options(hooks=pulumi.ResourceHookBinding(before_create=[lambda args: None])))', "hook"),
            ('pulumi.runtime.invoke("other:index:find", {})', "invoke"),
            ('pulumi.CustomResource("aws:s3/bucket:Bucket", "b")', "aws"),
            ('Thing("a", file=pulumi.FileAsset("x"))', "asset"),
            ('Thing("a", Options(replacement_trigger="x"))', "replacement_trigger"),
            ('Thing("a", Options(hide_diffs=["size"]))', "hide_diffs"),
            ('pulumi.ProviderResource("lab", "p", {}, Options(env_var_mappings={"A": "B"}))', "env_var_mappings"),
            ('Thing("a", Options(id="x"))', "read resource"),
            ('pulumi.ComponentResource("lab:index:Far", "far", None, None, True)', "multi-language component"),
            ('pulumi.runtime.call("other:index:Far/method", {})', "other:index:Far/method"),
            ('pulumi.require_pulumi_version(">=3.0.0")', "require_pulumi_version"),
        ],
    )
    def test_what_is_not_supported_is_refused_by_name(self, lab: Lab, body: str, feature: str) -> None:
        lab.program(body)
        os.environ["ENGINE_LAB"] = str(lab.home)
        lab.embedded_calls()
        with pytest.raises(engine.UnsupportedError, match="install the Pulumi CLI") as caught:
            engine.up(lab.options)
        assert feature in str(caught.value)

    def test_a_duplicate_name_is_refused(self, lab: Lab) -> None:
        lab.program('Thing("a")\nThing("a", size=2)')
        assert "duplicate resource" in lab.embedded("up").message
