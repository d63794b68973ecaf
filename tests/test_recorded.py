"""Recorded runs are kept with their machine and shown as what they are."""

import math

import pytest

from deploykit.recorded import recorded, write_recorded


@pytest.fixture(autouse=True)
def _own_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))


def test_a_recorded_run_comes_back_with_machine_date_and_command():
    """The label that goes with the numbers says where, when and how."""
    write_recorded("loader", [{"images_per_s": 9.5}], what="Loader speed.", command="python benchmarks/loader.py")

    run = recorded("loader")
    assert run.table().to_dict("records") == [{"images_per_s": 9.5}]
    assert run.label.startswith(f"Recorded on {run.machine['gpu'] or run.machine['cpu']}, {run.date}, python ")
    assert run.label.endswith("not run here. Reproduce it with: python benchmarks/loader.py")


def test_names_in_it_are_text():
    """A row called like a tag is shown, not rendered."""
    write_recorded("x", [{"model": "<img src=x onerror=alert(1)>"}], what="<b>", command="<i>")

    assert not [tag for tag in ("<img", "<b>", "<i>") if tag in recorded("x")._repr_html_()]


def test_nothing_and_nan_are_not_recorded(tmp_path):
    """A number that was not measured is left out, not written."""
    with pytest.raises(ValueError, match=r"^nothing to record for x"):
        write_recorded("x", [], what="w", command="c")
    with pytest.raises(ValueError, match=r"^x holds a number that is not finite"):
        write_recorded("x", [{"a": math.nan}], what="w", command="c")
    assert not list(tmp_path.rglob("x.json*"))


def test_a_missing_or_broken_run_is_named(tmp_path):
    """The message lists what there is, or says what the file lacks."""
    write_recorded("there", [{"a": 1}], what="w", command="c")
    (tmp_path / "data" / "results" / "broken.json").write_text('{"what": "w"}')

    with pytest.raises(
        ValueError, match=r"^there is no recorded run 'gone' in data/results; there are: broken, there$"
    ):
        recorded("gone")
    with pytest.raises(ValueError, match=r"^data/results/broken\.json is no recorded run \('date'\)"):
        recorded("broken")
