"""The ``data`` section of a run's config."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from entrodrop_tune.config import Section


class Columns(Section):
    """Which columns of a row hold what. Leave out what the usual names already say (see docs/data.md)."""

    prompt: str | None = None
    """What the user asks."""

    response: str | None = None
    """What the model is to answer: the only part that is learned."""

    input: str | None = None
    """Appended to the prompt after a blank line when not empty (the ``input`` of Alpaca rows)."""

    system: str | None = None
    """System prompt of the row."""

    messages: str | None = None
    """A list of chat messages, OpenAI (role, content) or ShareGPT (from, value)."""

    text: str | None = None
    """Plain text for continued pre-training: every token is learned."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Columns":
        kinds = [self.messages is not None, self.text is not None]
        kinds.append(any(c is not None for c in (self.prompt, self.response, self.input)))
        if sum(kinds) > 1:
            raise ValueError("name either prompt and response, or messages, or text")
        return self


class Template(Section):
    """Format strings over a row's columns, for example ``"Question: {question}\\nAnswer:"``."""

    prompt: str | None = None
    """Makes the prompt (instead of ``columns.prompt``)."""

    response: str | None = None
    """Makes the response (instead of ``columns.response``)."""


class Source(Section):
    """One data set among several."""

    path: str
    """A .jsonl, .json, .csv or .parquet file, a folder written by ``datasets.save_to_disk``, or ``hf://ORG/NAME``."""

    weight: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Training only. How often each row is seen per epoch: 0.5 takes another half each time, 2 shows all twice."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many rows."""

    subset: str | None = None
    """Configuration name of a Hugging Face data set."""

    split: str = "train"
    """Split of a Hugging Face data set."""

    columns: Columns | None = None
    """Overrides ``data.columns`` for this source."""

    template: Template | None = None
    """Overrides ``data.template`` for this source."""


def _path_as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _as_sources(value: Any) -> Any:
    return [_path_as_source(item) for item in value] if isinstance(value, list | tuple) else [_path_as_source(value)]


SourceLike = Annotated[Source, BeforeValidator(_path_as_source)]
"""A source, or its path alone."""
Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_sources), Field(min_length=1)]
"""One source or several, each in full or as a path."""


class Replay(Source):
    """General data mixed in, so that the model forgets less."""

    ratio: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    """Replay samples per training sample in every epoch."""


class DataConfig(Section):
    """What to train and validate on, and how rows become tokens."""

    train: Sources
    """A file (see ``Source.path``), or a list of files or sources with weights."""

    validation: SourceLike | None = None
    """Validation file or source; without one, ``validation_fraction`` of the training rows is held out."""

    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of distinct training rows held out when ``validation`` is not given (0 = train without validation)."""

    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Chooses which rows are held out; the choice depends on their content, not on their order."""

    columns: Columns = Columns()
    """Column names, where the usual ones do not apply."""

    template: Template = Template()
    """Format strings that build the prompt or response from columns."""

    system_prompt: str | None = None
    """System message for rows that bring none (some chat templates insert their own when it is absent)."""

    max_length: Annotated[int, Field(ge=2)] = 2048
    """Longest sample, and the length of packed sequences, in tokens."""

    too_long: Literal["refuse", "skip", "truncate", "split"] = "refuse"
    """Rows beyond ``max_length``: stop, leave out, keep the first ``max_length`` tokens, or cut (plain text only)."""

    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Malformed or empty rows: stop and name the first, or leave them out; either way they are counted."""

    packing: bool = False
    """Put several samples into one sequence of up to ``max_length`` tokens; they do not see each other."""

    group_by_length: bool = False
    """Put samples of similar length into one batch: less padding, a less random order. Packing does without."""

    replay: Replay | None = None
    """General data to mix into every epoch."""

    cache_dir: str | None = "~/.cache/entrodrop-tune"
    """Where tokenised data is kept, keyed by file content, tokenizer and settings; null keeps nothing."""

    @field_validator("validation", "replay")
    @classmethod
    def _weight_is_for_training(cls, source: Source | None) -> Source | None:
        # The neutral weight stays valid: run.json holds every key.
        if source is not None and source.weight != 1.0:
            raise ValueError("weight is for the sources of data.train (data.replay.ratio sets the share of replay)")
        return source
