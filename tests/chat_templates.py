"""Chat templates modelled on those of well-known families, for tests.

Each is short and keeps what is special about its family: which roles it knows, where it trims, what
ends a turn, what becomes of a system's message and of thoughts.
"""

from dataclasses import dataclass

from families import EOS, tiny_tokenizer

TURNS = "{% for m in messages %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)
AHEAD = "{% if add_generation_prompt %}"


@dataclass(frozen=True)
class Family:
    """A template, its special tokens, and how its turns end.

    Args:
        template: The template.
        special: Special tokens beside the tokenizer's own.
        end: The token that ends the assistant's turn; "" where plain text does.
        heading: What then stands before the next turn.
        roles: Which turns it writes as they are.
    """

    template: str
    special: tuple[str, ...] = ()
    end: str = ""
    heading: str = ""
    roles: tuple[str, ...] = ("assistant", "user")

    def tokenizer(self):
        """The tests' tokenizer with this template."""
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = self.template
        tokenizer.add_special_tokens({"extra_special_tokens": list(self.special)})
        return tokenizer


def _headed(start: str, end: str, middle: str = "\n", after: str = "\n") -> str:
    """Turns of the form START role MIDDLE content END AFTER."""
    return (
        f"{TURNS}{{{{ '{start}' + m.role + '{middle}' + m.content + '{end}{after}' }}}}"
        "{% endfor %}"
        f"{AHEAD}{{{{ '{start}assistant{middle}' }}}}{{% endif %}}"
    ).replace("\n", "\\n")


def _tagged(user: str, assistant: str, end: str, system: str | None = None, trim: str = "") -> str:
    """Turns that begin with a token of the role's and end alike."""
    raising = "{{ raise_exception('no system') }}"
    said = f"{{{{ m.content{trim} }}}}"
    of_system = raising if system is None else f"{system}{said}{end}"
    return (
        f"{TURNS}{{% if m.role == 'user' %}}{user}{said}{end}"
        f"{{% elif m.role == 'assistant' %}}{assistant}{said}{end}"
        f"{{% else %}}{of_system}{{% endif %}}{{% endfor %}}{AHEAD}{assistant}{{% endif %}}"
    )


THINK_STRIPPED = (
    "{% set c = m.content %}{% if '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}"
)

FAMILIES = {
    "chatml": Family(
        _headed("<|im_start|>", "<|im_end|>"), ("<|im_start|>", "<|im_end|>"), "<|im_end|>"
    ),
    "llama-2": Family(
        ALTERNATE + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + "
        "' [/INST]' }}{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}"
        "{% endfor %}",
        end=EOS,
    ),
    "llama-3": Family(
        "{{ bos_token }}" + TURNS + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' "
        "+ m.content | trim + '<|eot_id|>' }}{% endfor %}"
        + AHEAD
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "mistral": Family(
        "{{ bos_token }}" + ALTERNATE + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        end=EOS,
    ),
    "mistral-nemo": Family(
        "{{ bos_token }}" + ALTERNATE + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        EOS,
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        + TURNS
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
        "m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
        + AHEAD
        + "{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
    ),
    "phi-3": Family(
        _headed("<|", "<|end|>", "|>\n"),
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|end|>",
    ),
    "zephyr": Family(_headed("<|", EOS, "|>\n"), ("<|user|>", "<|assistant|>"), EOS),
    "tulu": Family(
        _tagged("<|user|>\n", "<|assistant|>\n", "\n", "<|system|>\n"),
        heading="<|user|>",
    ),
    "alpaca": Family(
        TURNS + "{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% else %}### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
        + AHEAD
        + "### Response:\n{% endif %}",
        heading="### Instruction:",
    ),
    "vicuna": Family(
        TURNS + "{% if m.role == 'user' %}USER: {{ m.content }}{% else %} ASSISTANT: "
        "{{ m.content + eos_token }}{% endif %}{% endfor %}" + AHEAD + " ASSISTANT:{% endif %}",
        end=EOS,
    ),
    "guanaco": Family(
        TURNS + "### {{ 'Human' if m.role == 'user' else 'Assistant' }}: {{ m.content }} "
        "{% endfor %}" + AHEAD + "### Assistant:{% endif %}",
        heading="### Human:",
    ),
    "openchat": Family(
        TURNS + "{{ 'GPT4 Correct ' + ('User' if m.role == 'user' else 'Assistant') + ': ' + "
        "m.content + '<|end_of_turn|>' }}{% endfor %}"
        + AHEAD
        + "{{ 'GPT4 Correct Assistant:' }}{% endif %}",
        ("<|end_of_turn|>",),
        "<|end_of_turn|>",
    ),
    "command-r": Family(
        "{{ bos_token }}"
        + _tagged(
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",
            " | trim",
        ),
        (
            *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
            *("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        ),
        "<|END_OF_TURN_TOKEN|>",
    ),
    "deepseek-r1": Family(
        "{{ bos_token }}" + TURNS + "{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
        + THINK_STRIPPED
        + "{{ '<|Assistant|>' + c + eos_token }}{% endif %}{% endfor %}"
        + AHEAD
        + "{{ '<|Assistant|><think>\\n' }}{% endif %}",
        ("<|User|>", "<|Assistant|>"),
        EOS,
    ),
    "qwen3": Family(
        TURNS
        + "{% if m.role == 'assistant' %}"
        + THINK_STRIPPED
        + "{{ '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if loop.last else '') + "
        "c.lstrip('\\n') + '<|im_end|>\\n' }}{% else %}{{ '<|im_start|>' + m.role + '\\n' + "
        "m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        + AHEAD
        + "{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    "gpt-oss": Family(
        "<|start|>system<|message|>You are a model.<|end|>"
        + TURNS
        + "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
        "<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}" + AHEAD + "<|start|>assistant{% endif %}",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
        "<|return|>",
    ),
    "falcon": Family(
        TURNS
        + "{{ m.role | capitalize + ': ' + m.content + '\\n' }}{% endfor %}"
        + AHEAD
        + "Assistant:{% endif %}",
        heading="User:",
    ),
    "glm-4": Family(
        "[gMASK]<sop>"
        + TURNS
        + "{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}"
        + AHEAD
        + "<|assistant|>\n{% endif %}",
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"),
        "<|user|>",
    ),
    "granite": Family(
        TURNS + "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + "
        "'<|end_of_text|>\\n' }}{% endfor %}"
        + AHEAD
        + "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
    ),
    "exaone": Family(
        TURNS + "{{ '[|' + m.role + '|]' + m.content }}{{ '[|endofturn|]\\n' if m.role != 'user' "
        "else '\\n' }}{% endfor %}" + AHEAD + "[|assistant|]{% endif %}",
        ("[|user|]", "[|assistant|]", "[|system|]", "[|endofturn|]"),
        "[|endofturn|]",
    ),
    "internlm": Family(
        _headed("<|im_start|>", "<|im_end|>", after=""),
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    "plain lines": Family(TURNS + "{{ m.role }}: {{ m.content }}\n{% endfor %}", heading="user:"),
    "the last turn only": Family(
        "{{ messages[-1].content }}{% if add_generation_prompt %}\n{% endif %}"
    ),
    "users alone": Family(
        TURNS + "{% if m.role == 'user' %}<|user|>{{ m.content }}{% endif %}{% endfor %}",
        roles=("user",),
    ),
}
