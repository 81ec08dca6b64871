import pytest

from thalweg.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, capsys):
    """Run the command; exit code, standard output, standard error."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, error = capsys.readouterr()
        return end.value.code, out, error

    return command
