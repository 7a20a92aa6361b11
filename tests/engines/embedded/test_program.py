"""Running the program in this process."""

from __future__ import annotations

from tests.engines.embedded.lab import Lab


def test_a_traceback_begins_in_the_program(lab: Lab) -> None:
    lab.program('def wrong():\n    raise KeyError("nothing here")\nwrong()\n')
    message = lab.embedded("up").message
    assert 'raise KeyError("nothing here")' in message
    assert "runpy" not in message


def test_the_next_run_imports_a_changed_module_again(lab: Lab) -> None:
    lab.program('import part\npulumi.export("x", part.VALUE)')
    (lab.project / "part.py").write_text("VALUE = 1\n")
    assert lab.embedded("up").outputs == {"x": 1}
    (lab.project / "part.py").write_text("VALUE = 22\n")
    assert lab.embedded("up").outputs == {"x": 22}
