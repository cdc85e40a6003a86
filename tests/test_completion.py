"""Shell completion, in a real bash."""

import os
import shutil
import subprocess
import sys

import pytest

from sordino.cli.app import main

# Asks bash what it would offer for a line, as readline does when Tab is pressed.
_ASK = """
source "$HOME/.bashrc"
COMP_LINE="$1"
read -ra COMP_WORDS <<< "$1"
[[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
how=$(complete -p sordino)
[[ "$how" == *"-o default"* ]] || exit 3
function=${how##*-F }
"${function%% *}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_commands_flags_choices_and_files(home, capsys):
    main(["--install-completion", "--shell", "bash"])
    assert "written: " in capsys.readouterr().out
    (home / "insults.csv").touch()

    def offered(line):
        asked = subprocess.run(
            ["bash", "-c", _ASK, "ask", line],
            cwd=home,
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        return set(asked.stdout.split())

    assert {"run", "find", "bake", "doctor"} <= offered("sordino ")
    assert offered("sordino ev") == {"evaluate"}
    assert {"--verify", "--strength", "--force"} <= offered("sordino bake --")
    assert offered("sordino bake m x --format ") == {
        *("weights", "ia3", "lora", "hooks", "control-vector")
    }
    assert offered("sordino find m --negatives ins") == {"insults.csv"}


def test_twice_is_once(home):
    for _ in range(2):
        main(["--install-completion", "--shell", "bash"])
    assert (home / ".bashrc").read_text().count("completions/sordino") == 2  # in one line


def test_a_shell_that_cannot_be_told_is_asked_for(home):
    asked = subprocess.run(
        [sys.executable, "-m", "sordino", "--install-completion"],
        env={
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "SHELL": "/bin/none",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 2
    assert "--shell bash" in asked.stderr
