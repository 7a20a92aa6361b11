"""Write everything that is generated from the registry and the dashboards into the checkout: `python -m monitoring`."""

from collections.abc import Mapping
from pathlib import Path

from monitoring.dashboards.grafana import documents
from monitoring.index import alert_index
from monitoring.runbooks import runbook_pages

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / "docs" / "runbooks"
INDEX = ROOT / "docs" / "alerts.md"


def generated() -> dict[Path, Mapping[str, str]]:
    """Return the text of every generated file by its name in its directory; the directories have no other files."""
    return {
        DIRECTORY: {f"{name}.md": text for name, text in runbook_pages().items()},
        ROOT / "monitoring" / "dashboards" / "generated": documents(),
    }


def main() -> None:
    """Write every file, and remove the files of alerts and dashboards that no longer exist."""
    INDEX.write_text(alert_index(), encoding="utf-8")
    for directory, files in generated().items():
        for name, text in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text, encoding="utf-8")
        for file in directory.rglob("*"):
            if file.is_file() and str(file.relative_to(directory)) not in files:
                file.unlink()


if __name__ == "__main__":
    main()
