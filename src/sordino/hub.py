"""Whether a hub can be asked, decided once and quickly."""

from functools import cache

_PATIENCE_S = 3


@cache
def reachable() -> bool:
    """Whether the model hub answers, asked once in a process; never with HF_HUB_OFFLINE=1.

    The hub's own client tries for some 20 seconds before it gives up, for every file again.
    """
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except requests.RequestException:
        return False
    return True
