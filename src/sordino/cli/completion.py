"""`sordino --install-completion`."""

from typing import Literal

from sordino.errors import UserError


def install_completion(
    *, shell: Literal["bash", "zsh", "fish", "powershell"] | None = None
) -> None:
    """Let the shell complete commands, flags and file names.

    Writes the completion script where the shell looks for it, and a line into its start-up file
    where it takes one (~/.bashrc, ~/.zshrc, PowerShell's profile).

    Parameters
    ----------
    shell
        Which shell; by default the current one.
    """
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    from sordino.cli.app import app

    try:
        chosen = shell or detect_shell()
    except ShellDetectionError:
        raise UserError(
            "The shell could not be recognised: pass --shell bash, zsh, fish or powershell."
        ) from None
    script = app.install_completion(shell=chosen)
    if chosen == "bash":
        # To the parser, models are text, but they can be files: if nothing else can be completed,
        # bash completes file names.
        text = script.read_text(encoding="utf-8")
        script.write_text(text.replace("complete -F", "complete -o default -F"), encoding="utf-8")
    print(f"written: {script}\nOpen a new shell to use it.")
