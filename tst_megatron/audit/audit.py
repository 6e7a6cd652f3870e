"""Audit models: open them, make the items, score each model, compare, say what was found."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.audit.compared import answers_of, pairing_of
from tst_megatron.audit.items import Catalogue, Scores, Suite
from tst_megatron.audit.margins import Margins
from tst_megatron.audit.models import store
from tst_megatron.audit.models.open_models import (
    USUAL_BAG_SIZE,
    Model,
    Subject,
    Subjects,
    load,
    open_subjects,
)
from tst_megatron.audit.models.scores import best_inverse_temperature, score
from tst_megatron.audit.probes import natural
from tst_megatron.audit.probes.catalogue import VERSION, make_catalogue
from tst_megatron.audit.probes.encoding import Encoder
from tst_megatron.audit.probes.text import read_documents
from tst_megatron.audit.results import Audit, Audited
from tst_megatron.megatron.cpu.device import find as find_device

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what, total) -> shows how much is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The options of an audit."""

    margins: Margins
    text: Path | None = None
    """Held-out text; None leaves out the probes that need it."""
    bag_size: int | None = None
    """K; None takes that of the model cards."""
    baseline_seeds: Sequence[Path] = ()
    """Further seeds of the baseline, which measure how far seeds are apart."""
    losses: Sequence[float] = ()
    """Of the models in their order, where no text measures them."""
    num_items: int = 300
    """Of each generated probe."""
    max_tokens: int = 65_536
    """Of held-out text."""
    seed: int = 1
    batch_size: int = 16
    device: str | None = None
    scores: Path = Path("audit-scores")
    """Folder in which scores are kept."""


def audit(
    folders: Sequence[Path], settings: Settings, *, say: Callable[[str], None], bar: Bar
) -> Audit:
    """Compare models with the first of them on every probe.

    Args:
        folders: two or more in Hugging Face format, the baseline first.
        settings: the options.
        say: told each step in a short sentence.
        bar: shows the passages that are scored.

    Raises:
        ValueError: models that cannot be asked the same, text that is too short, or an option that
            is none.
    """
    start = time.perf_counter()
    _check(folders, settings)
    device = find_device(settings.device)
    subjects = open_subjects([folders[0], *settings.baseline_seeds, *folders[1:]])
    bag_size, source = _bag_size(subjects, settings.bag_size)
    documents = [] if settings.text is None else read_documents(settings.text)
    catalogue = _catalogue(subjects, documents, bag_size, settings)
    probes, margins = catalogue.probes, settings.margins
    scored = [
        _scored(subject, subjects, catalogue, settings, device, say, bar)
        for subject in subjects.subjects
    ]
    say(f"comparing on {len(probes)} probes")
    num_seeds = 1 + len(settings.baseline_seeds)
    models = _audited(subjects, scored, settings)
    baselines = [each.scores for each in scored[:num_seeds]]
    others = list(zip(models[num_seeds:], scored[num_seeds:], strict=True))
    return Audit(
        baseline=models[0].name,
        models=models,
        compared=[model.name for model, _ in others],
        pairings=[pairing_of(models[0], model, margins.of_kind["loss"]) for model, _ in others],
        answers=[
            answer
            for model, each in others
            for answer in answers_of(
                model.name, each.scores, baselines, probes, margins, seed=settings.seed
            )
        ],
        left_out=catalogue.left_out,
        bag_size=bag_size,
        bag_size_source=source,
        num_positions=subjects.num_positions,
        text=None if settings.text is None else str(settings.text),
        text_sha256=_checksum(documents),
        margins={**margins.of_kind, **margins.of_probe},
        seed=settings.seed,
        items_version=VERSION,
        suites={suite.name: suite.fingerprint() for suite in catalogue.suites},
        num_baseline_seeds=num_seeds,
        seconds=time.perf_counter() - start,
    )


def _check(folders: Sequence[Path], settings: Settings) -> None:
    problems = []
    if len(folders) < 2:
        problems.append("an audit compares models. Give two folders or more, the baseline first")
    if settings.losses and len(settings.losses) != len(folders):
        problems.append(
            f"--loss: {len(settings.losses)} losses for {len(folders)} models. Give one for each, "
            "in their order"
        )
    if settings.bag_size is not None and settings.bag_size < 2:
        problems.append(f"--bag-size {settings.bag_size}: a bag of 2 tokens or more has an edge")
    if problems:
        raise ValueError("\n".join(problems))


def _bag_size(subjects: Subjects, given: int | None) -> tuple[int, str]:
    if given is not None:
        return given, "as given"
    known = {each.name: each.bag_size for each in subjects.subjects if each.bag_size}
    if len(set(known.values())) > 1:
        said = ", ".join(f"{name}: {size}" for name, size in known.items())
        raise ValueError(
            f"the models were trained with several bag sizes ({said}). Give --bag-size"
        )
    for name, size in known.items():
        return size, f"of {name}'s model card"
    return USUAL_BAG_SIZE, "assumed, since no model card names one"


def _catalogue(
    subjects: Subjects, documents: Sequence[str], bag_size: int, settings: Settings
) -> Catalogue:
    encoder = Encoder(subjects.tokenizer, bag_size=bag_size, num_positions=subjects.num_positions)
    found = make_catalogue(
        documents,
        encoder,
        num_items=settings.num_items,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
    )
    settings.margins.check(
        [probe.name for probe in found.probes], [each.name for each in found.left_out]
    )
    return found


def _checksum(documents: Sequence[str]) -> str | None:
    if not documents:
        return None
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.encode()).digest())
    return digest.hexdigest()


# --- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    scores: Mapping[str, Scores]
    inverse_temperature: float


def _scored(
    subject: Subject,
    subjects: Subjects,
    catalogue: Catalogue,
    settings: Settings,
    device: str,
    say: Callable[[str], None],
    bar: Bar,
) -> _Scored:
    """Return a model's scores of all suites: as they are kept, or computed and kept."""
    suites = {suite.name: suite for suite in catalogue.suites}
    text = suites.get(natural.SUITE)
    key = "" if text is None else text.fingerprint()
    paths = {
        name: store.path_of(
            settings.scores,
            subject.fingerprint,
            name,
            hashlib.sha256(f"{suite.fingerprint()} {key}".encode()).hexdigest(),
        )
        for name, suite in suites.items()
    }
    kept = {name: store.read(path, suites[name].num_scored) for name, path in paths.items()}
    lacking = [name for name, each in kept.items() if each is None]
    if lacking:
        say(f"{subject.name}: loading")
        model = load(subject, device, subjects.tokenizer.facts.vocab_size)
        inverse = next((each[1] for each in kept.values() if each is not None), None)
        if inverse is None:
            inverse = _inverse_temperature(model, text, settings)
        for name in lacking:
            num_passages = len(suites[name].passages)
            say(f"{subject.name}: {name}, {num_passages:,} passages")
            with bar(f"{subject.name}: {name}", num_passages) as advance:
                found = score(
                    model,
                    suites[name],
                    inverse_temperature=inverse,
                    batch_size=settings.batch_size,
                    advance=advance,
                )
            store.save(paths[name], found, inverse)
            # As it will be read again, to the last digit.
            kept[name] = store.read(paths[name], suites[name].num_scored)
    else:
        say(f"{subject.name}: all scores are in {settings.scores}")
    read = {name: each for name, each in kept.items() if each is not None}
    return _Scored(
        scores={name: each[0] for name, each in read.items()},
        inverse_temperature=next((each[1] for each in read.values()), 1.0),
    )


def _inverse_temperature(model: Model, text: Suite | None, settings: Settings) -> float:
    if text is None:
        return 1.0
    return best_inverse_temperature(model, text, batch_size=settings.batch_size)


def _audited(subjects: Subjects, scored: Sequence[_Scored], settings: Settings) -> list[Audited]:
    given: list[float | None] = [None] * len(scored)
    if settings.losses:
        given[0] = settings.losses[0]
        given[1 + len(settings.baseline_seeds) :] = settings.losses[1:]
    found = []
    for subject, each, loss in zip(subjects.subjects, scored, given, strict=True):
        text = each.scores.get(natural.SUITE)
        measured = None if text is None else float(text.loss.mean())
        found.append(
            Audited(
                name=subject.name,
                folder=subject.folder,
                fingerprint=subject.fingerprint,
                loss=measured if loss is None else loss,
                is_loss_measured=loss is None,
                temperature=1 / each.inverse_temperature,
            )
        )
    return found
