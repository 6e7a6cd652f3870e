"""Ask the Hugging Face hub once, before data is downloaded, whether it answers."""

from __future__ import annotations

import threading

SECONDS = 10.0
"""For all parts of the question: name, connection, proxy and answer. A timeout of the client itself
is for each of its steps, and none is for looking up the name."""

_NOT_THE_HUB = {407, 500, 502, 503, 504}
"""HTTP statuses of a proxy, and of a hub that is down; the libraries would try again for minutes.
Any other answer will do: it is the way there that is asked about."""


def hub_problem() -> str | None:
    """Say why no data can be downloaded from the hub now; None where it can.

    `datasets` finds that out for each data set, with retries that take minutes.
    """
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if datasets.config.HF_HUB_OFFLINE:
        return "HF_DATASETS_OFFLINE is set"
    found: list[str | None] = []
    # A thread, since a name server, or a hub that sends a byte a second, can hold it for ever.
    asking = threading.Thread(
        target=lambda: found.append(_no_answer(constants.ENDPOINT)), daemon=True
    )
    asking.start()
    asking.join(SECONDS)
    problem = found[0] if found else f"no answer in {SECONDS:.0f} seconds"
    return problem and f"{constants.ENDPOINT} cannot be reached ({problem})"


def _no_answer(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        # Where data sets are listed, since something else may answer for the site itself.
        answer = get_session().head(f"{endpoint}/api/datasets?limit=1", timeout=SECONDS)
    # Of httpx or requests, whichever huggingface_hub is built on, and of proxies.
    except Exception as error:
        return str(error) or type(error).__name__
    return f"HTTP status {answer.status_code}" if answer.status_code in _NOT_THE_HUB else None
