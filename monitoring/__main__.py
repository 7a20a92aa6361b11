"""Write the runbook pages to docs/runbooks of the checkout: `python -m monitoring`."""

from pathlib import Path

from monitoring.runbooks import runbook_pages

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "runbooks"


def main() -> None:
    """Write every page, and remove the pages of alerts that no longer exist."""
    pages = runbook_pages()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (DIRECTORY / f"{name}.md").write_text(text, encoding="utf-8")
    for removed in {file.stem for file in DIRECTORY.glob("*.md")} - pages.keys():
        (DIRECTORY / f"{removed}.md").unlink()


if __name__ == "__main__":
    main()
