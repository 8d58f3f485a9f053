"""`pressoir report DIR`: where the page is written, and what is refused."""

import pytest
from click.testing import CliRunner
from fake_runs import hostile_run

from pressoir.flows import cli


def report(*words):
    return CliRunner().invoke(cli.main, ["report", *map(str, words)])


@pytest.fixture
def run(tmp_path):
    return hostile_run(tmp_path / "[red]run")


def test_the_page_is_written_into_the_folder_or_where_output_says(run, tmp_path):
    result = report(run)
    assert result.exit_code == 0, result.output
    assert result.output == f"report  {run / 'report.html'}\n"
    page = (run / "report.html").read_bytes()
    other = tmp_path / "new" / "page.HTML"
    for _ in range(2):  # the second replaces the first
        assert report(run, "--output", other).output == f"report  {other}\n"
        assert other.read_bytes() == page
    assert [path.name for path in other.parent.iterdir()] == ["page.HTML"]


def test_what_is_no_run_is_refused_in_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "empty"], "is not the output of a compression run"),
        ([tmp_path / "nowhere"], "is not a folder"),
        ([run, "--output", run / "recipe.yaml"], "is not an HTML file"),
    ):
        result = report(*words)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr
    assert not (run / "report.html").exists()
