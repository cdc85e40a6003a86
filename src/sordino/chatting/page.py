"""The page of the chat."""

import json
from typing import Any

from markupsafe import Markup

from sordino.chatting.conversation import SIDES, Settings
from sordino.chatting.voices import Voices
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.evaluation.writing import PRE_PROMPTS
from sordino.templates import environment, own_file
from sordino.version import __version__


def render(duet: Voices, start: Settings, nonce: str) -> str:
    """The page as HTML.

    Args:
        duet: The two sides.
        start: The initial settings.
        nonce: The nonce of its scripts and styles in the content security policy.
    """
    template = environment("sordino.chatting").get_template("chat.html.jinja")
    return template.render(
        css=own_file("sordino.report", "page.css") + own_file("sordino.chatting", "chat.css"),
        theme_js=own_file("sordino.report", "page.js"),
        js=own_file("sordino.chatting", "chat.js"),
        facts=_facts(duet, start),
        duet=duet,
        start=start,
        sides=SIDES,
        most=f"{max(2, start.strength):g}",
        pre_prompts=PRE_PROMPTS,
        limits="" if duet.scorer is None else duet.scorer.limits,
        nonce=nonce,
        version=__version__,
    )


def _facts(duet: Voices, start: Settings) -> Markup:
    """Values for the page's script, as JSON that is safe inside a script element."""
    facts: dict[str, Any] = {
        "start": start.model_dump(mode="json"),
        "conversation": duet.conversation([]).model_dump(mode="json"),
        "toxic": TOXIC_SCORE,
        "pre_prompts": PRE_PROMPTS,
    }
    return Markup(json.dumps(facts).replace("<", "\\u003c"))  # noqa: S704
