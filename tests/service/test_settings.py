from pathlib import Path

import pytest

from service.storage_service.settings import Settings, SettingsError

REQUIRED = {"STORAGE_FLEET": "green", "STORAGE_DATABASE_URL": "postgresql://app@127.0.0.1:5432/observatory"}


def test_only_fleet_and_database_are_required() -> None:
    settings = Settings.from_environment({**REQUIRED, "PATH": "/usr/bin"})
    assert settings.fleet == "green"
    assert str(settings.listen) == "127.0.0.1:8000"


def test_every_setting_is_read(tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    password_file.write_text("secret\n")
    settings = Settings.from_environment(
        {
            **REQUIRED,
            "STORAGE_LISTEN": "[::1]:9000",
            "STORAGE_DATABASE_PASSWORD_FILE": str(password_file),
            "STORAGE_CACHE_URL": "redis://127.0.0.1:6379/0",
            "STORAGE_CACHE_PASSWORD_FILE": str(password_file),
            "STORAGE_CACHE_TIMEOUT_SECONDS": "0.1",
            "STORAGE_POOL_MIN": "2",
            "STORAGE_POOL_MAX": "20",
            "STORAGE_POOL_TIMEOUT_SECONDS": "1.5",
            "STORAGE_DATABASE_TIMEOUT_SECONDS": "3",
            "STORAGE_MAX_PENDING_WRITES": "7",
            "STORAGE_BUFFER_ITEMS": "5000",
            "STORAGE_MAX_UPLOADS": "9",
            "STORAGE_MAX_UPLOAD_BYTES": "33554432",
            "STORAGE_MAX_TEXT_BYTES": "4096",
            "STORAGE_UPLOAD_SECONDS": "2.5",
            "STORAGE_UPLOAD_BYTES_PER_SECOND": "2048",
            "STORAGE_MAX_RESPONSES": "8",
            "STORAGE_MAX_RESPONSE_BYTES": "33554433",
            "STORAGE_RESPONSE_SECONDS": "3.5",
            "STORAGE_RESPONSE_BYTES_PER_SECOND": "4096",
            "STORAGE_LAME_DUCK_SECONDS": "0",
            "STORAGE_DRAIN_SECONDS": "4.5",
            "STORAGE_MAX_AGE_DAYS": "30",
            "STORAGE_MAX_AGE_DAYS_TELEMETRY": "7",
            "STORAGE_MAX_FUTURE_SECONDS": "60",
            "STORAGE_LOG_LEVEL": "DEBUG",
        }
    )
    assert (settings.listen.host, settings.listen.port) == ("::1", 9000)
    assert settings.model_dump(exclude={"listen", "fleet", "database_url"}) == {
        "database_password_file": password_file,
        "cache_url": "redis://127.0.0.1:6379/0",
        "cache_password_file": password_file,
        "cache_timeout_seconds": 0.1,
        "pool_min": 2,
        "pool_max": 20,
        "pool_timeout_seconds": 1.5,
        "database_timeout_seconds": 3,
        "max_pending_writes": 7,
        "buffer_items": 5000,
        "max_uploads": 9,
        "max_upload_bytes": 32 * 1024 * 1024,
        "max_text_bytes": 4096,
        "upload_seconds": 2.5,
        "max_responses": 8,
        "max_response_bytes": 33554433,
        "response_seconds": 3.5,
        "response_bytes_per_second": 4096,
        "upload_bytes_per_second": 2048,
        "lame_duck_seconds": 0,
        "drain_seconds": 4.5,
        "max_age_days": 30,
        "max_age_days_telemetry": 7,
        "max_future_seconds": 60,
        "log_level": "DEBUG",
    }


@pytest.mark.parametrize(
    ("name", "value", "expectation"),
    [
        ("STORAGE_LISTEN", "8000", "expected HOST:PORT"),
        ("STORAGE_LISTEN", "127.0.0.1:70000", "expected HOST:PORT"),
        ("STORAGE_FLEET", "red", "must be 'blue' or 'green'"),
        ("STORAGE_DATABASE_URL", "mysql://app@host/db", "expected postgresql://"),
        ("STORAGE_DATABASE_URL", "postgresql://app@host:x%zz/db?nonsense=1", "expected postgresql://"),
        ("STORAGE_DATABASE_URL", "postgresql://app:hunter2@host/db", "must not contain a password"),
        ("STORAGE_DATABASE_URL", "postgresql://app@host/db?password=hunter2", "must not contain a password"),
        ("STORAGE_DATABASE_PASSWORD_FILE", "/does/not/exist", "expected a readable file"),
        ("STORAGE_CACHE_URL", "127.0.0.1:6379", "expected redis://HOST:PORT/NUMBER"),
        ("STORAGE_CACHE_URL", "redisss://127.0.0.1:6379/0", "expected redis://HOST:PORT/NUMBER"),
        ("STORAGE_CACHE_URL", "redis://:hunter2@127.0.0.1:6379/0", "expected redis://HOST:PORT/NUMBER"),
        ("STORAGE_CACHE_PASSWORD_FILE", "/does/not/exist", "expected a readable file"),
        ("STORAGE_CACHE_TIMEOUT_SECONDS", "0", "greater than or equal to 0.001"),
        ("STORAGE_POOL_MIN", "0", "greater than or equal to 1"),
        ("STORAGE_POOL_MIN", "11", "at most STORAGE_POOL_MAX, which is 10"),
        ("STORAGE_POOL_MAX", "many", "must be a valid integer"),
        ("STORAGE_DRAIN_SECONDS", "nan", "must be a finite number"),
        ("STORAGE_DRAIN_SECONDS", "-1", "greater than or equal to 0"),
        ("STORAGE_LOG_LEVEL", "LOUD", "must be 'DEBUG', 'INFO'"),
        ("STORAGE_VERSION", "v9.9.9", "is not a setting: the version is part of the artifact"),
        ("STORAGE_POLL_MAX", "5", "is not a setting: expected one of STORAGE_LISTEN"),
    ],
)
def test_invalid_value_names_variable_and_expectation(name: str, value: str, expectation: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({**REQUIRED, name: value})
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert expectation in message
    assert "hunter2" not in message


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_variable_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: is required but not set"):
        Settings.from_environment({key: value for key, value in REQUIRED.items() if key != name})


def test_every_error_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({"STORAGE_FLEET": "red", "STORAGE_POOL_MAX": "0"})
    lines = str(raised.value).splitlines()
    assert {line.partition(":")[0] for line in lines} == {
        "STORAGE_FLEET",
        "STORAGE_POOL_MAX",
        "STORAGE_DATABASE_URL",
    }
