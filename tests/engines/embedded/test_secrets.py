"""Secrets in the state, in messages and under a wrong passphrase."""

from __future__ import annotations

import json
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.engines.cli.automation import remove_salt, remove_unused_salt
from observatory.engines.embedded import StackOptions
from observatory.engines.embedded.secrets import Crypter
from tests.engines.embedded.lab import STACK, TWO, Lab

pytestmark = pytest.mark.slow

FOREIGN = Crypter("another passphrase").salt


def test_another_secrets_provider_is_refused_by_name(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    state = json.loads(lab.checkpoint.read_text())
    state["checkpoint"]["latest"]["secrets_providers"] = {"type": "cloud", "state": {"url": "awskms://alias/x"}}
    lab.checkpoint.write_text(json.dumps(state))
    with pytest.raises(engine.UnsupportedError, match="secrets provider 'cloud'"):
        engine.up(lab.options)


def test_a_wrong_passphrase_changes_nothing(lab: Lab) -> None:
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


def test_no_secret_is_on_disk_in_plain_text(lab: Lab) -> None:
    lab.program(TWO + 'pulumi.export("key", a.key)\n'.replace("a.key", 'Output.secret("hush-hush")'))
    outcome = lab.embedded("up")
    assert outcome.outputs["key"] == "hush-hush"
    files = [path for path in lab.backend.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hush-hush" in path.read_bytes()]
    assert engine.outputs(lab.options)["key"] == "[secret]"
    assert "correct horse" not in repr(lab.options)


def test_a_providers_message_contains_no_secret(lab: Lab) -> None:
    lab.program('Thing("a", fail="create", key=Output.secret("hush-hush"))')
    lab.prepare()
    with pytest.raises(engine.StepFailed) as caught:
        engine.up(lab.options)
    assert str(caught.value).endswith("no create today [secret]")
    assert "hush-hush" not in "".join(traceback.format_exception(caught.value)) + caught.value.detail


def test_an_unchanged_secret_keeps_its_ciphertext(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    before = lab.checkpoint.read_text()
    lab.embedded("up")
    assert lab.checkpoint.read_text() == before


@pytest.mark.cli
def test_the_cli_uses_a_salt_in_the_state_only(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    assert lab.cli("up").steps == []
    assert lab.embedded("up").steps == []


@pytest.mark.parametrize(
    "config",
    [f"encryptionsalt: {FOREIGN}\n", f"config:\n  lab:a: b\nencryptionsalt: {FOREIGN}\n"],
    ids=["alone", "beside settings"],
)
def test_a_salt_of_another_passphrase_is_named_and_nothing_is_written(tmp_path: Path, config: str) -> None:
    lab = Lab(tmp_path, config=config)
    lab.program(TWO)
    for operation in (engine.init, engine.up, engine.preview):
        with pytest.raises(engine.PassphraseError, match=r"`encryptionsalt` in Pulumi\.dev\.yaml belongs to another"):
            operation(lab.options)
    assert not lab.checkpoint.exists()
    remove_unused_salt(lab.options)  # as `observatory up` does
    assert lab.embedded("up").steps


def test_a_changed_passphrase_file_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.program(TWO)
    lab.embedded("up")
    file = tmp_path / "passphrase"
    wrong = replace(lab.options, passphrase="", passphrase_file=file)
    for operation in (engine.up, engine.preview, engine.destroy, partial(engine.outputs, show_secrets=True)):
        with pytest.raises(engine.PassphraseError, match=f"^{file} was changed: .* Restore the file from a copy"):
            operation(wrong)
    (lab.project / f"Pulumi.{STACK}.yaml").write_text(f"encryptionsalt: {Crypter('a third').salt}\n")
    with pytest.raises(engine.PassphraseError, match=f"^{file} was changed"):  # not the salt's fault
        engine.up(wrong)


@pytest.mark.cli
def test_the_cli_names_a_changed_passphrase_file_too(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.program(TWO)
    lab.embedded("up")
    file = tmp_path / "passphrase"
    with pytest.raises(engine.PassphraseError, match=f"^{file} was changed"):
        automation.preview(replace(lab.options, passphrase="wrong", passphrase_file=file))


def test_a_salt_that_decrypts_settings_or_a_state_is_not_removed(tmp_path: Path) -> None:
    config = f"config:\n  lab:a:\n    secure: v1:x:y\nencryptionsalt: {FOREIGN}\n"
    lab = Lab(tmp_path, config=config)
    remove_unused_salt(lab.options)
    file = lab.project / f"Pulumi.{STACK}.yaml"
    assert file.read_text() == config
    file.write_text("")
    lab.program(TWO)
    lab.embedded("up")
    file.write_text(f"encryptionsalt: {FOREIGN}\n")
    remove_unused_salt(lab.options)
    assert file.read_text()
    assert "belongs to another passphrase" in lab.embedded("up").message


def test_a_secret_setting_is_decrypted_by_the_salt_of_the_file_or_the_state(tmp_path: Path) -> None:
    crypter = Crypter("correct horse")
    sealed, salt = crypter.encrypt("hush"), f"encryptionsalt: {crypter.salt}\n"
    lab = Lab(tmp_path, config=f"config:\n  lab:key:\n    secure: {sealed}\n{salt}")
    assert engine.decrypt_setting(lab.options, sealed) == "hush"
    lab.program('pulumi.export("key", pulumi.Config().require_secret("key"))')
    assert lab.embedded("up").outputs["key"] == "hush"
    file = lab.project / f"Pulumi.{STACK}.yaml"
    remove_salt(file)
    assert salt in file.read_text()  # a file with secrets keeps it
    file.write_text(file.read_text().replace(salt, ""))
    assert engine.decrypt_setting(lab.options, sealed) == "hush"
    assert lab.embedded("up").steps == []
    with pytest.raises(engine.PassphraseError):
        engine.decrypt_setting(replace(lab.options, passphrase="wrong"), sealed)


@pytest.mark.cli
def test_a_secret_setting_of_the_cli_is_decrypted(lab: Lab) -> None:
    lab.program('pulumi.export("key", pulumi.Config().require_secret("key"))')
    lab.pulumi("stack", "init", STACK)
    lab.pulumi("config", "set", "--secret", "lab:key", "hush", "--stack", STACK)
    automation.up(lab.options)  # keeps the salt, which only the file has
    settings = yaml.safe_load((lab.project / f"Pulumi.{STACK}.yaml").read_text())
    assert engine.decrypt_setting(lab.options, settings["config"]["lab:key"]["secure"]) == "hush"
    assert lab.embedded("up").steps == []
    assert engine.outputs(lab.options, show_secrets=True)["key"] == "hush"
