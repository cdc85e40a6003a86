"""Call transformers on a user's files: quietly, and with its errors as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from sordino.errors import UserError
from sordino.files import is_memory_full, printable, read_json, refuse_pointer
from sordino.models.folder import is_vocabulary
from sordino.models.transformers_internals import attention_of, use_own_attention
from sordino.progress import note

_ORDINARY = (None, "eager", "sdpa")
"""The implementations of attention that need torch alone."""
_LONGEST_REASON = 300
_FOREIGN_CODE = "trust_remote_code"


_lock = Lock()
_before: list[tuple[int, bool]] = []
"""Verbosity and progress bars before the open blocks of `quiet_transformers`, once per block."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress the loaders' own progress bars and warnings; errors are raised all the same.

    The settings are the process's. Blocks of several threads may overlap: the last one that ends
    restores them.
    """
    with _lock:
        now = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        _before.append(_before[0] if _before else now)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        with _lock:
            verbosity, bars = _before.pop()
            if not _before:
                transformers_logging.set_verbosity(verbosity)
                if bars:
                    transformers_logging.enable_progress_bar()


@contextmanager
def library_errors(name: str, mend: str = "", *, done: str = "loaded") -> Iterator[None]:
    """Turn what a library raises on a user's files into one sentence.

    It is only put around calls of transformers, never around our own code. These calls run the code
    of some hundred architectures on any configuration, and the tokenizers library raises a bare
    `Exception`: their errors have no closer class in common.

    Args:
        name: What is being loaded, as the user called it.
        mend: What to do if a package is missing.
        done: What failed, for the message.

    Raises:
        UserError: The library failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        _refuse_foreign_code(name, error)
        reason = _reason(error)
        if is_memory_full(error):
            reason = f"no memory is left for it: {reason}"
        if isinstance(error, ImportError) and mend:
            reason += f" ({mend})"
        raise UserError(
            f"The model {name} could not be {done} ({type(error).__name__}): {reason}"
        ) from error


def _reason(error: Exception) -> str:
    """A library's words in one line, in which no argument is taken for one of ours."""
    said = printable(" ".join(str(error).replace("`", "'").split()), _LONGEST_REASON)
    return said or "the library does not say why, so check that its files belong together."


def _refuse_foreign_code(name: str, error: Exception) -> None:
    if _FOREIGN_CODE in str(error):
        raise UserError(
            f"{name} needs Python code that its authors put beside it (auto_map), and such code is "
            "never run here: choose a model that transformers opens by itself."
        ) from error


def read_settings(folder: Path) -> dict[str, Any]:
    """A folder's config.json, which must be an object.

    Raises:
        UserError: It is missing, damaged or something else.
    """
    path = folder / "config.json"
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(
            f"{path} holds {_kind(settings)} in place of a model's settings: get it again."
        )
    return settings


def open_config(folder: Path, name: str) -> PretrainedConfig:
    """A folder's configuration as transformers reads it, with an attention that is installed.

    Raises:
        UserError: It cannot be read.
    """
    settings = read_settings(folder)
    if "model_type" not in settings:
        raise UserError(
            f"{folder / 'config.json'} has no model_type, which names the architecture: get it "
            "again from where the model came from."
        )
    with quiet_transformers(), library_errors(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    wanted = attention_of(config)
    if wanted not in _ORDINARY and not (
        wanted == "flash_attention_2" and is_flash_attn_2_available()
    ):
        note(
            f"{name} asks for the attention {printable(str(wanted), 60)}, which is not installed: "
            "torch's own is used."
        )
        use_own_attention(config)
    return config


def open_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """A folder's tokenizer.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    with quiet_transformers():
        try:
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False
            )
        # The tokenizers library raises a bare `Exception` for a file that it cannot read, and
        # transformers' readers of older files raise anything.
        except Exception as error:
            _refuse_foreign_code(name, error)
            _refuse_without_vocabulary(folder, name)
            raise UserError(
                f"The tokenizer of {name} could not be loaded ({type(error).__name__}: "
                f"{_reason(error)}): "
                f"check that its files in {folder} are complete, or install newer versions of "
                "transformers and tokenizers if it needs them."
            ) from error
    return found


def _refuse_without_vocabulary(folder: Path, name: str) -> None:
    """Raise `UserError` if a folder has no file of a tokenizer, or only a pointer to one."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and is_vocabulary(path)]
    if not found:
        raise UserError(
            f"{name} has no tokenizer: copy its files (tokenizer.json, tokenizer_config.json) into "
            f"{folder} from where the model came from."
        )
    for path in found:
        with path.open("rb") as file:
            refuse_pointer(file.read(100), str(path))


def refuse_odd_generation(folder: Path) -> None:
    """Raise `UserError` if a folder's generation settings are damaged; transformers ignores that.

    They say which tokens end a text.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    settings = read_json(path)
    ends = settings.get("eos_token_id") if isinstance(settings, dict) else ""
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and type(end) is not int:
            raise UserError(
                f"{path} is damaged (its eos_token_id must be one token's number or a list of "
                "these): get it again."
            )


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
