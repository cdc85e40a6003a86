"""Turns the arguments that library messages name into the command line's flags."""

import re
import shlex

_ARGUMENT = re.compile(r"((?:[Tt]he )?setting )?`((?:\w+\.)?[a-z][a-z_]*)(?:=([^`]*))?`")
# Arguments whose flag has another name; before a dot is the class or function of the argument.
_FLAGS = {
    "per_class": "--attribution-per-class",
    "output": "-o",
    "settings": "--set",
    "measures": "--measure",
    "limit": "--questions",
    "timeout_s": "--request-timeout",
    "key_variable": "--api-key-env",
    "Bold.prompts": "--bold-prompts",
    "Endpoint.model": "--served-model",
    "Honest.prompts": "--templates",
    "config": "--concept-config",
    "load_concept.revision": "--concept-revision",
    "original": "ORIGINAL",
    "protected": "--protect",
    "quiet": "QUIET",
    "rules": "--rule",
    "strata_column": "--stratify",
}


def in_flags(message: str) -> str:
    """A message with flags instead of arguments, which it names as `name` or `name=value`.

    Settings of a rule share one flag; messages name them as setting `name=value`.

    Example:
        >>> in_flags("give `pooling=mean` or `moments=True`, and no `batch_tokens`.")
        'give --pooling mean or --moments, and no --batch-tokens.'
        >>> in_flags("It needs setting `k=NUMBER`.")
        'It needs --set k=NUMBER.'
        >>> in_flags("`Bold.prompts=a file` holds no prompt.")
        "--bold-prompts 'a file' holds no prompt."
    """
    return _ARGUMENT.sub(_flag, message)


def _flag(found: re.Match[str]) -> str:
    name, value = found[2], (found[3] or "True").strip("\"'")
    if "." in name and name not in _FLAGS:  # a file's name
        return found[0]
    if found[1]:
        return f"--set {name}={value}"
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value == "False":
        return flag.replace("--", "--no-", 1)
    return flag if value == "True" else f"{flag} {shlex.quote(value)}"
