"""Reading settings: defaults, the union of platforms, and an error for each kind of mistake."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from observatory import __version__
from observatory.errors import ObservatoryError
from observatory.settings import (
    AwsSettings,
    LocalSettings,
    SettingsError,
    StackSettings,
    check_secret_files,
    load_file,
)
from observatory.settings.base import POOLER_CLIENTS


def load(tmp_path: Path, text: str) -> StackSettings:
    file = tmp_path / "Pulumi.local.yaml"
    file.write_text(text)
    return load_file(file)


def test_a_missing_file_means_defaults(tmp_path: Path) -> None:
    assert load_file(tmp_path / "Pulumi.local.yaml") == LocalSettings()


def defaults(model: type[BaseModel]) -> Iterator[BaseModel]:
    """Yield the groups that are defaults of a model's fields, and those in them."""
    for field in model.model_fields.values():
        if isinstance(field.default, BaseModel):
            yield field.default
            yield from defaults(type(field.default))


@pytest.mark.parametrize("group", [*defaults(LocalSettings), AwsSettings.ports], ids=lambda group: type(group).__name__)
def test_every_default_is_valid(group: BaseModel) -> None:
    assert type(group).model_validate(group.model_dump()) == group


def test_only_keys_of_the_projects_namespace_are_read(tmp_path: Path) -> None:
    settings = load(tmp_path, "config:\n  llm-observatory:fleets:\n    size: 3\n  aws:region: eu-central-1\n")
    assert settings.fleets.size == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "  llm-observatory:portz: {}\n",
            "Pulumi.local.yaml:2: llm-observatory:portz: unknown setting; did you mean 'ports'?",
        ),
        (
            "  llm-observatory:ports:\n    postgress: 1\n",
            "Pulumi.local.yaml:3: llm-observatory:ports.postgress: unknown setting; did you mean 'postgres'?",
        ),
        (
            "  llm-observatory:ports:\n    postgres: many\n",
            "Pulumi.local.yaml:3: llm-observatory:ports.postgres: expected a whole number",
        ),
        (
            "  database: { name: postgres }\n",
            "llm-observatory:database.name: 'postgres' is a database of PostgreSQL",
        ),
        (
            "  notifications: { webhook: { url_file: ~/webhook } }\n",
            "llm-observatory:notifications.webhook.url_file: begins with ~, which only a shell replaces",
        ),
        ("  database: { name: pgbouncer }\n", "database.name: 'pgbouncer' is a database of pgBouncer itself"),
        ("  delivery: { canary_steps: [] }\n", "2: llm-observatory:delivery.canary_steps: expected a first step below"),
        ("  delivery: { canary_steps: [100] }\n", "delivery.canary_steps: expected a first step below 100"),
        ("  delivery: { canary_steps: [50, 25, 100] }\n", "delivery.canary_steps: expected each step to be larger"),
        ("  delivery: { canary_steps: [5, 5] }\n", "delivery.canary_steps: expected each step to be larger"),
        (
            "  llm-observatory:notifications:\n    slack: { webhook_url: https://hooks.example/secret }\n",
            "llm-observatory:notifications.slack.webhook_file: is required and not set",
        ),
        (
            (
                "  llm-observatory:notifications:\n    email:\n      { to: a@b.example, sender: c@b.example, "
                "smarthost: mail.b.example:25, username: u, password_file: p, require_tls: false }\n"
            ),
            "llm-observatory:notifications.email: a password requires TLS",
        ),
        (
            "  llm-observatory:receivers:\n    ticket: { url_file: t }\n",
            "Pulumi.local.yaml:3: llm-observatory:receivers: ticket would get no critical alert: set slack or",
        ),
        ("  llm-observatory:fleets:\n    size: 0\n", "expected at least 1 (given: 0)"),
        (
            "  llm-observatory:delivery:\n    gates:\n      saturation: 0.8\n      failures: 5\n",
            "Pulumi.local.yaml:5: llm-observatory:delivery.gates: failures was removed: a sequential test of all",
        ),
        (
            "  llm-observatory:delivery:\n    gates:\n      p95_factor: 2\n",
            "Pulumi.local.yaml:4: llm-observatory:delivery.gates: p95_factor was renamed to slow_factor",
        ),
        (
            "  llm-observatory:delivery:\n    gates:\n      p95_unnoticed_s: 0.2\n",
            "Pulumi.local.yaml:4: llm-observatory:delivery.gates: p95_unnoticed_s was renamed to slow_unnoticed_s",
        ),
        (
            "  llm-observatory:platform: azure\n",
            "Pulumi.local.yaml:2: llm-observatory:platform: expected one of local, aws (given: 'azure')",
        ),
        (
            "  llm-observatory:platform: [aws]\n",
            "Pulumi.local.yaml:2: llm-observatory:platform: expected one of local, aws (given: ['aws'])",
        ),
        (
            "  llm-observatory:schedule:\n    backup_full: 30 25 * * sun\n",
            "Pulumi.local.yaml:3: llm-observatory:schedule.backup_full: hour '25' is not within 0-23",
        ),
        (
            "  llm-observatory:delivery:\n    trusted_keys:\n      ci: MCowBQYDK2VwAyEA\n",
            "Pulumi.local.yaml:4: llm-observatory:delivery.trusted_keys.ci: expected an Ed25519 public key",
        ),
        (
            "  llm-observatory:delivery:\n    windows:\n      - { days: [tue], opens: 10:00, closes: '12:00' }\n",
            'llm-observatory:delivery.windows.0.opens: expected a time in quotes, such as "10:00"',
        ),
        (
            "  llm-observatory:delivery:\n    windows: [{ days: [tue], opens: '9', closes: '9', timezone: Mars }]\n",
            "'Mars' is not a time zone of this machine's database",
        ),
        (
            "  llm-observatory:database:\n    shared_buffers_mb: 9999999\n",
            "Pulumi.local.yaml:3: llm-observatory:database.shared_buffers_mb: expected at most",
        ),
        (
            "  llm-observatory:database:\n    shared_buffers_mb: 8000000\n",
            "Pulumi.local.yaml:3: database.shared_buffers_mb 8000000 and cache.memory_mb 64 exceed this machine's",
        ),
        (
            "  llm-observatory:database:\n    max_connections: 50\n    pool_size: 60\n",
            "Pulumi.local.yaml:4: llm-observatory:database: pool_size is 60, expected at most 40: max_connections 50",
        ),
        (
            "  llm-observatory:fleets:\n    size: 10\n    pool_size: 60\n",
            "Pulumi.local.yaml:4: llm-observatory:fleets: pool_size is 60: two fleets of 10 instances would hold 1200",
        ),
        (
            "  llm-observatory:ports:\n    postgres: 5432\n    patroni: 5432\n",
            "Pulumi.local.yaml:3: ports.postgres and ports.patroni both have port 5432",
        ),
        (
            "  llm-observatory:first_rollout:\n    version: 1.0\n",
            "Pulumi.local.yaml:3: llm-observatory:first_rollout.version",
        ),
        (
            "  llm-observatory:backups:\n    repositories: [{}, {path: disk}]\n",
            "llm-observatory:backups.repositories.1.path: expected the absolute path of a directory on this machine",
        ),
        (
            "  llm-observatory:backups:\n    repositories: [{path: /disk/b}, {path: /disk}]\n",
            "repositories: /disk/b is in /disk; each repository needs a directory of its own",
        ),
        ("  llm-observatory:backups:\n    repositories: [{}, {}, {}]\n", "expected at most 2 entries"),
        (
            "  delivery:\n    trusted_keys:\n      CI: x\n",
            "4: llm-observatory:delivery.trusted_keys.CI: the name 'CI' is not valid: expected a text that matches ^",
        ),
        (
            "  sample: { known_values: { modle: [a] } }\n",
            "2: llm-observatory:sample.known_values.modle: the name 'modle' is not valid: expected 'provider', 'model'",
        ),
    ],
)
def test_a_wrong_setting_names_file_line_key_and_expectation(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, f"config:\n{text}")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config:\n  llm-observatroy:fleets: {size: 2}\n", "unknown namespace 'llm-observatroy'"),
        ("confg:\n  llm-observatory:fleets: {size: 2}\n", "confg: unknown key; expected one of config"),
        ("config:\n  fleets: {size: 1}\n  fleets: {size: 2}\n", "Pulumi.local.yaml:3: fleets: duplicate key"),
        ("config:\n  fleets:\n    size: 1\n    size: 2\n", "Pulumi.local.yaml:4: size: duplicate key"),
        ("config:\n  llm-observatory:fleets: {size: true}\n", "fleets.size: expected a whole number"),
        ("config:\n  llm-observatory:fleets: 2\n", "llm-observatory:fleets: expected a group of settings (given: 2)"),
        ("config:\n  1: 2\n", "llm-observatory:1: unknown setting"),
        ("llm-observatory:platform: aws\n", "Pulumi.local.yaml:1: llm-observatory:platform: unknown key"),
        ("llm-observatory:platform: aws\n", "settings belong below 'config'"),
        ("config:\n  aws:region: x\n  llm-observatroy:a: 1\n", "Pulumi.local.yaml:3: llm-observatroy:a: unknown"),
        ("config: {}\nencryptionsalt: [x]\n", "Pulumi.local.yaml:2: encryptionsalt: expected the text"),
    ],
)
def test_an_error_that_the_pulumi_cli_ignores_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, text)
    assert expected in str(error.value)


def test_a_key_without_a_namespace_is_the_projects(tmp_path: Path) -> None:
    assert load(tmp_path, "config:\n  fleets:\n    size: 3\n").fleets.size == 3


def test_a_list_of_wrong_entries_is_not_called_too_short(tmp_path: Path) -> None:
    window = '{days: [sunday], opens: "10:00", closes: "12:00"}'
    with pytest.raises(SettingsError, match=r"days\.0: expected 'mon', 'tue'") as error:
        load(tmp_path, f"config:\n  maintenance: [{window}]\n")
    assert "entries" not in str(error.value)


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, "config:\n  llm-observatory:ports:\n    blue: x\n    green: y\n")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"config:\n\tports: {}\n", "Pulumi.local.yaml:2: is not valid YAML (column 1): "),
        (b"config:\n\tports: {}\n", "; indent with spaces, not tabs"),
        (b"config:\n  ports:\n    blue: 1\n   green: 2\n", "Pulumi.local.yaml:4: is not valid YAML (column 4): "),
        (b"config:\n  schedule: {log_rotation: * * * * *}\n", "Pulumi.local.yaml:2: is not valid YAML (column 29): "),
        (b"config:\n  ports: {\n", "Pulumi.local.yaml:3: is not valid YAML"),
        (b"config:\n  plat\0form: local\n", "Pulumi.local.yaml:2: is not valid YAML"),
        (b"# caf\xe9\n", "Pulumi.local.yaml:1: is not UTF-8 text"),
        (b"config: &a\n  ports: *a\n", "Pulumi.local.yaml: is nested too deeply, or an alias refers to a group"),
        (b"config: " + b"[" * 3000 + b"]" * 3000, "Pulumi.local.yaml: is nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_parsed_has_one_line_with_place_problem_and_remedy(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "Pulumi.local.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        load_file(file)
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"^{tmp_path.name}: cannot be read: Is a directory$"):
        load_file(tmp_path)


def test_two_settings_on_one_port_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ports\.postgres and ports\.patroni both have port 5432"):
        load(tmp_path, "config:\n  llm-observatory:ports: {postgres: 5432, patroni: 5432}\n")


def test_a_fleet_whose_ports_overlap_another_fleets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ports\.blue\+5 and ports\.green both have port 18105"):
        load(tmp_path, "config:\n  llm-observatory:fleets: {size: 9}\n  llm-observatory:ports: {green: 18105}\n")


@pytest.mark.parametrize("text", ["config: [", "- a\n", "config: 3\n"])
def test_the_error_of_a_malformed_file_names_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"Pulumi\.local\.yaml"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  network: {cidr: 10.0.0.0/16}\n", "Pulumi.local.yaml:2: llm-observatory:network: a setting of platform"),
        ("  database:\n    instance_type: m7g.large\n", "Pulumi.local.yaml:3: llm-observatory:database.instance_type"),
    ],
)
def test_the_error_of_an_aws_setting_in_a_local_stack_names_it(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, f"config:\n{text}")
    assert expected in str(error.value)
    assert "a setting of platform 'aws'; this stack has platform 'local'" in str(error.value)


PRODUCTION = Path(__file__).resolve().parents[2] / "Pulumi.production.yaml"
LOCAL_ONLY = sorted(set(LocalSettings.model_fields) - set(AwsSettings.model_fields))
AWS_ONLY = sorted(set(AwsSettings.model_fields) - set(LocalSettings.model_fields))


def test_the_platform_selects_the_model_and_defaults_to_local(tmp_path: Path) -> None:
    assert isinstance(load(tmp_path, "config:\n  llm-observatory:platform: local\n"), LocalSettings)
    assert isinstance(load(tmp_path, "config: {}\n"), LocalSettings)
    assert isinstance(load_file(PRODUCTION), AwsSettings)


@pytest.mark.parametrize("name", AWS_ONLY)
def test_every_group_of_aws_is_refused_in_a_local_stack(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, f"config:\n  llm-observatory:{name}: {{}}\n")
    assert str(error.value) == (
        f"Pulumi.local.yaml:2: llm-observatory:{name}: a setting of platform 'aws'; this stack has platform 'local'"
    )


@pytest.mark.parametrize("name", LOCAL_ONLY)
def test_every_local_group_is_refused_in_an_aws_stack(tmp_path: Path, name: str) -> None:
    text = PRODUCTION.read_text().replace("config:\n", f"config:\n  llm-observatory:{name}: {{}}\n")
    with pytest.raises(SettingsError) as error:
        load(tmp_path, text)
    assert f":{name}: a setting of platform 'local'; this stack has platform 'aws'" in str(error.value)


def test_an_aws_stack_must_name_its_platform(tmp_path: Path) -> None:
    text = "\n".join(line for line in PRODUCTION.read_text().splitlines() if ":platform:" not in line)
    with pytest.raises(SettingsError) as error:
        load(tmp_path, text)
    assert all(f"llm-observatory:{name}: a setting of platform 'aws'" in str(error.value) for name in AWS_ONLY)


SECRET = "config:\n  llm-observatory:platform: local\n  llm-observatory:{key}:\n    {value}\n"
SEALED = "secure: v1:nonce:sealed"


def test_settings_that_were_stored_as_secrets_are_read(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.local.yaml"
    file.write_text(SECRET.format(key="fleets", value=f"size:\n      {SEALED}"))
    assert load_file(file, lambda _: "3").fleets.size == 3
    file.write_text(SECRET.format(key="fleets", value=SEALED))
    assert load_file(file, lambda _: '{"size": 3}').fleets.size == 3


@pytest.mark.parametrize("value", [SEALED, f"size:\n      {SEALED}"])
def test_an_error_in_a_secret_setting_does_not_show_it(tmp_path: Path, value: str) -> None:
    file = tmp_path / "Pulumi.local.yaml"
    file.write_text(SECRET.format(key="fleets", value=value))
    with pytest.raises(SettingsError, match=r"Pulumi\.local\.yaml:\d: llm-observatory:fleets") as caught:
        load_file(file, lambda _: "hush-hush")
    assert "hush-hush" not in str(caught.value)


def test_a_secret_setting_without_the_passphrase_is_named(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.local.yaml"
    file.write_text(SECRET.format(key="fleets", value=f"size:\n      {SEALED}"))

    def fail(_: str) -> str:
        raise ObservatoryError("the passphrase is missing")

    with pytest.raises(
        SettingsError, match=r"yaml:4: llm-observatory:fleets\.size: the secret cannot be decrypted: the"
    ):
        load_file(file, fail)


HUSH = "hush-hush"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("  llm-observatory:notifications: {slack: {webhook_file: https://hooks.example.com/hush-hush}}\n", 2),
        ("  llm-observatory:notifications:\n    slack: hush-hush\n", 3),
        ("  llm-observatory:notifications:\n    email:\n      to: hush-hush\n", 4),
        ("  llm-observatory:sample:\n    source: postgresql://reader:hush-hush@db.example.com/traces\n", 3),
        ("  llm-observatory:sample:\n    source: host=db user=reader password=hush-hush\n", 3),
        ("  llm-observatory:sample:\n    source: postgresql://db/traces?user=reader&password=hush-hush\n", 3),
        ("  llm-observatory:sample: hush-hush\n", 2),
        ("  llm-observatory:delivery:\n    trusted_keys: {ci: [hush-hush]}\n", 3),
        ("encryptionsalt: [hush-hush]\n", 2),
    ],
)
def test_a_secret_where_a_reference_belongs_is_refused_and_not_shown(tmp_path: Path, text: str, place: int) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, f"config:\n{text}")
    assert HUSH not in str(error.value)
    assert f"Pulumi.local.yaml:{place}: " in str(error.value)


def test_a_receivers_secret_in_place_of_its_reference_is_not_shown(tmp_path: Path) -> None:
    text = PRODUCTION.read_text()
    given = text.replace("{ name: alert-receivers, key: pagerduty-routing-key }", HUSH)
    assert given != text
    with pytest.raises(SettingsError, match="pagerduty_routing_key") as error:
        load(tmp_path, given)
    assert HUSH not in str(error.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "encryptionsalt: v1:x\n"])
def test_a_file_without_settings_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"Pulumi\.local\.yaml:1: has no settings") as error:
        load(tmp_path, text)
    assert "config: {}" in error.value.remedy


def test_a_missing_file_of_a_secret_is_named(tmp_path: Path) -> None:
    settings = load(tmp_path, "config:\n  llm-observatory:notifications:\n    slack: {webhook_file: absent}\n")
    with pytest.raises(SettingsError) as error:
        check_secret_files(tmp_path / "Pulumi.local.yaml", settings)
    assert str(error.value).startswith(
        f"Pulumi.local.yaml:3: llm-observatory:notifications.slack.webhook_file: {tmp_path}/absent cannot be read: No"
    )
    (tmp_path / "absent").write_text("https://hooks.example.com/x")
    check_secret_files(tmp_path / "Pulumi.local.yaml", settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (f"hooks.slack.com/{HUSH}", "has no http or https URL"),
        (f"https://user:{HUSH}@hooks.slack.com/x", "has no http or https URL"),
        (f"https://hooks.slack.com/{HUSH}\nhttps://hooks.slack.com/2", "has several lines"),
    ],
)
@pytest.mark.parametrize("group", ["notifications", "receivers"])
def test_a_secret_that_pages_nobody_is_refused_without_its_text(
    tmp_path: Path, group: str, text: str, reason: str
) -> None:
    channel = ', channel: "#a"' if group == "receivers" else ""
    settings = load(tmp_path, f"config:\n  llm-observatory:{group}:\n    slack: {{webhook_file: hook{channel}}}\n")
    (tmp_path / "hook").write_text(text)
    with pytest.raises(SettingsError, match=f"{group}.slack.webhook_file: .*{reason}") as error:
        check_secret_files(tmp_path / "Pulumi.local.yaml", settings)
    assert HUSH not in str(error.value)


def test_an_unknown_receiver_or_channel_is_named(tmp_path: Path) -> None:
    for wrong, named in (("teams: {url_file: x}", "teams"), ("slack: {webhook_file: x, channel: general}", "channel")):
        with pytest.raises(SettingsError, match=rf"receivers\.(slack\.)?{named}"):
            load(tmp_path, f"config:\n  llm-observatory:receivers:\n    {wrong}\n")


def test_maintenance_on_aws_is_in_utc(tmp_path: Path) -> None:
    window = '  llm-observatory:maintenance: [{ days: [sun], opens: "01:00", closes: "03:00", timezone: %s }]\n'
    load(tmp_path, PRODUCTION.read_text() + window % "UTC")
    with pytest.raises(SettingsError, match="use UTC"):
        load(tmp_path, PRODUCTION.read_text() + window % "Europe/Berlin")


def test_the_pooler_accepts_as_many_sessions_as_settings_allow() -> None:
    template = Path(__file__).resolve().parents[2] / "observatory/nodes/templates/pgbouncer.ini.j2"
    assert f"max_client_conn = {POOLER_CLIENTS}\n" in template.read_text()


def test_a_new_stack_starts_with_the_version_of_the_product() -> None:
    assert LocalSettings().first_rollout.version == f"v{__version__}"
