"""Whether the Hugging Face hub answers, asked once and shortly before data is downloaded."""

from __future__ import annotations

SECONDS = 10.0


def hub_problem() -> str | None:
    """Why no data can be downloaded from the hub now; None where it can.

    `datasets` finds that out for each data set, with retries that take minutes.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        # Any answer will do: it is the way there that is asked about.
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    # Of httpx or requests, whichever huggingface_hub is built on, and of proxies.
    except Exception as error:
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    return None
