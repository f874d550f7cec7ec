"""Every setting of a run: its type, default, limits and one line of documentation.

The dataclasses are frozen and checked when built, so no later stage meets a value it cannot use.
`None` means "derived": the value follows from the pool's tokens and the model's size, is printed
when the run starts, and is written out in the output's `config.yaml`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.errors import InvalidInput


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    key: str | None = None,
) -> Any:
    """A dataclass field that carries its documentation and limits.

    Args:
        default: the value when nothing is set; `dataclasses.MISSING` makes the field required.
        doc: one line for people, written into `config.yaml` as a comment.
        choices: the words a string may be; empty for any.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        above: the number must be strictly greater than this.
        below: the number must be strictly less than this.
        key: the name in YAML, where it cannot be a Python name.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"doc": doc, "key": key, "choices": choices, **limits}
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of the dataclasses below: checks its own fields when built."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            path = ".".join(part for part in (self.section, field_key(field)) if part)
            _check_limits(path, getattr(self, field.name), field.metadata)


def field_key(field: dataclasses.Field[Any]) -> str:
    """The name a field has in YAML and in `--set`."""
    return field.metadata.get("key") or field.name


def _check_limits(path: str, value: object, limits: Any) -> None:
    if value is None or isinstance(value, Section):
        return
    choices = limits.get("choices", ())
    if choices and value not in choices:
        raise InvalidInput(
            f"{path} must be one of {', '.join(choices)}, but is {value}.",
            f"Set {path} to one of them.",
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    wanted = _limits_in_words(limits)
    inside = limits["minimum"] <= value <= limits["maximum"]
    inside = inside and limits["above"] < value < limits["below"]
    if not inside or value in (math.inf, -math.inf):
        raise InvalidInput(
            f"{path} must be a number {wanted}, but is {number_in_words(value)}.",
            f"Set {path} to a number {wanted}.",
        )


def number_in_words(value: float) -> str:
    """A number as people write it, of any size."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if len(text) <= 40 else f"{text[:8]}... ({len(text)} digits)"


def _limits_in_words(limits: Any) -> str:
    low, high, above = limits["minimum"], limits["maximum"], limits["above"]
    if limits["below"] < math.inf:
        return f"in [{low:g}, {limits['below']:g})"
    if above > -math.inf and high < math.inf:
        return f"in ({above:g}, {high:g}]"
    if low > -math.inf and high < math.inf:
        return f"in [{low:g}, {high:g}]"
    if above > -math.inf:
        return f"above {above:g}"
    if low > -math.inf:
        return f"of at least {low:g}"
    return "that is finite"


METHOD_NAMES = ("blade", "color", "rho1", "dsir", "classifier", "perplexity", "random")
"""The selection methods, as `select.methods.METHODS` has them."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The proxy language model and its tokenizer."""

    section = "model"

    name: str = option(
        "tiny",
        "nano (0.7 M parameters), tiny (2.7 M), small (31 M) or base (124 M) from scratch, or a "
        "folder or Hub id",
    )
    window: int | None = option(
        None, "tokens the model reads at once; longer documents are rolled through", minimum=8
    )
    window_overlap: int | None = option(
        None, "tokens re-read as context when a long document rolls on; window / 8", minimum=1
    )
    vocabulary_size: int | None = option(
        None, "entries of the byte-level BPE trained for a model from scratch", minimum=257
    )
    tokenizer_sample_bytes: int = option(
        16_000_000, "bytes of pool text that the BPE is trained on, at most", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Section):
    """Where and in which precision the models run."""

    section = "compute"

    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = option(
        "auto",
        "auto takes bfloat16 where the hardware multiplies it natively",
        choices=("auto", "float32", "bfloat16"),
    )
    threads: int | None = option(
        None, "CPU threads; the machine's cores by default", minimum=1, maximum=4096
    )
    counting_processes: int | None = option(
        None,
        "processes that count words for dsir, classifier and the ensemble, of some 150 MB each; by "
        "default one a core without a model, at most 16, up to 8 beside a GPU, else none",
        minimum=0,
        maximum=1024,
    )
    microbatch_tokens: int | None = option(
        None,
        "tokens in one forward pass, padding included, half as many when training; bounds memory, "
        "changes no result. By default 4096 on a CPU, up to 65536 for both on a GPU as its memory "
        "allows",
        minimum=1,
    )
    checkpoint_minutes: float = option(
        5.0,
        "minutes of work that a killed run does again, at most, but for what comes before a round",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """How the proxy takes its steps (AdamW)."""

    section = "train"

    batch_tokens: int | None = option(None, "tokens in one optimizer step", minimum=1)
    learning_rate: float | None = option(None, "peak learning rate of the proxy", above=0)
    ramp_steps: int | None = option(
        None,
        "steps of linear learning-rate ramp at the start; a tenth of all by default, at most 100",
        minimum=0,
    )
    weight_decay: float = option(0.1, "decoupled weight decay of matrices", minimum=0)
    beta1: float = option(0.9, "AdamW first moment decay", minimum=0, below=1)
    beta2: float = option(0.95, "AdamW second moment decay", minimum=0, below=1)
    gradient_clip: float = option(1.0, "largest gradient norm; longer ones are scaled", above=0)
    max_rollbacks: int = option(
        3,
        "times that a loss or score that is not finite sends a run back to the end of the stage "
        "before, with learning rates halved",
        minimum=0,
        maximum=100,
    )


@dataclass(frozen=True, kw_only=True)
class BladeConfig(Section):
    """Bi-level adaptive data selection (arXiv 2606.18650) and its offline extensions."""

    section = "blade"

    lambda_: float = option(
        0.0, "weight of the pool's loss in the reference objective", key="lambda", minimum=0
    )
    lambda_end: float | None = option(
        None, "value at the last sync for linear and geometric schedules", minimum=0
    )
    lambda_schedule: str = option(
        "constant",
        "how lambda goes from lambda to lambda_end over the syncs",
        choices=("constant", "linear", "geometric"),
    )
    control: str | None = option(
        None,
        "what the reference is compared with: the live proxy (published), or a copy of it that "
        "takes the same K steps without the target. By default lookahead by document, proxy by "
        "token",
        choices=("proxy", "lookahead"),
    )
    train_on: str = option(
        "mixture",
        "what the proxy trains on: kept documents (published), or kept and unselected ones",
        choices=("kept", "mixture"),
    )
    mixture_kept_share: float = option(
        0.5, "share of a mixture batch's tokens that are kept ones", above=0, maximum=1
    )
    proxy_average: float | None = option(
        None,
        "share of its past steps that the running average of the proxy's weights spans, which "
        "syncs start from and documents are scored by; 0 takes the live weights (published). By "
        "default 0.1 under the lookahead control, else 0",
        minimum=0,
        maximum=1,
    )
    warmup_tokens: int | None = option(
        None, "unselected pool tokens the proxy trains on before the first sync", minimum=0
    )
    sync_every: int | None = option(None, "T: proxy steps between two syncs", minimum=1)
    reference_steps: int | None = option(None, "K: reference steps at a sync", minimum=1)
    reference_learning_rate: float | None = option(
        None, "learning rate of the K reference steps; the proxy's by default", above=0
    )
    reference_schedule: str = option(
        "linear",
        "learning rate of the K reference steps after their ramp: constant, or linear decay to 0",
        choices=("constant", "linear"),
    )
    passes: int | None = option(None, "times the pool is drawn", minimum=1)
    round_share: float | None = option(
        None,
        "share of the pool that the rounds of a pass draw, where a final pass decides about all of "
        "it; a third by default before an ensemble, else 1",
        above=0,
        maximum=1,
    )
    average: str | None = option(
        None,
        "Frank-Wolfe step sizes over a document's decisions: last 1, uniform 1/(e+1), "
        "linear 2/(e+2); by default last after an ensemble, else uniform",
        choices=("last", "uniform", "linear"),
    )
    final: str | None = option(
        None,
        "one more pass that scores only and decides the pool as a whole: rescore by a new pair, "
        "ensemble by the last round's, less the votes of an n-gram classifier and of the proxy "
        "after that round. By default ensemble for blade by document, else none",
        choices=("none", "rescore", "ensemble"),
    )
    ngram_weight: float = option(
        0.5,
        "what an ensemble takes from a document's score for each spread that an n-gram "
        "classifier's log-odds of the target lie below a cap; its pair's score has a spread of 1",
        minimum=0,
    )
    redundancy_weight: float = option(
        0.4,
        "what an ensemble takes from a document's score for each spread that the proxy, trained on "
        "picks since the last sync, has learned more of it than of most of the pool",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lambda_schedule == "constant":
            return
        if self.lambda_end is None:
            raise InvalidInput(
                f"blade.lambda_schedule is {self.lambda_schedule}, but lambda_end is not set.",
                "Set blade.lambda_end to the value at the last sync.",
            )
        if self.lambda_schedule == "geometric" and min(self.lambda_, self.lambda_end) <= 0:
            raise InvalidInput(
                "A geometric schedule needs blade.lambda and blade.lambda_end above 0, but they "
                f"are {self.lambda_:g} and {self.lambda_end:g}.",
                "Set both above 0, or use blade.lambda_schedule=linear.",
            )


@dataclass(frozen=True, kw_only=True)
class DsirConfig(Section):
    """Importance resampling by hashed word uni- and bigrams (arXiv 2302.03169)."""

    section = "dsir"

    buckets: int = option(
        10_000, "buckets that word uni- and bigrams are hashed into", minimum=1, maximum=2**31 - 1
    )
    noise: str = option(
        "gumbel",
        "gumbel (published): the top k are a sample in proportion to the weights; none: they are "
        "the highest weights",
        choices=("gumbel", "none"),
    )
    score: str = option(
        "sum",
        "sum (published): log ratios of all n-grams, which grows with length; mean: per n-gram, "
        "which the noise would drown, so set noise to none",
        choices=("sum", "mean"),
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Section):
    """A linear bigram classifier of target against pool (the recipe of arXiv 2406.11794)."""

    section = "classifier"

    buckets: int = option(
        65_536, "buckets that word uni- and bigrams are hashed into", minimum=1, maximum=2**31 - 1
    )
    epochs: int = option(3, "times each training document is seen", minimum=1)
    learning_rate: float = option(0.1, "Adam's rate at the start; it falls to zero", above=0)


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig(Section):
    """Selection by the proxy's own loss, without a target."""

    section = "perplexity"

    band: str = option(
        "middle",
        "which losses are kept: those nearest to the pool's median, or the lowest",
        choices=("middle", "lowest"),
    )


@dataclass(frozen=True, kw_only=True)
class WriteConfig(Section):
    """The curated Parquet parts."""

    section = "write"

    row_group_rows: int = option(
        4096, "rows in one row group of a part", minimum=1, maximum=2**31 - 1
    )
    compression: str = option(
        "zstd", "Parquet compression", choices=("zstd", "snappy", "gzip", "none")
    )


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One run of `curate run`: where from, where to, how much, how."""

    pool: str = option(dataclasses.MISSING, "the raw corpus: file, folder, glob, URL or hf:NAME")
    target: str = option(dataclasses.MISSING, "documents that stand for what a model should learn")
    out: str = option(dataclasses.MISSING, "the run's output folder; nothing else is written")
    keep: float = option(0.2, "share of the pool's tokens to keep", above=0, maximum=1)
    method: str = option("blade", "how documents are scored", choices=METHOD_NAMES)
    granularity: str = option(
        "document", "the unit that is kept or dropped", choices=("document", "token")
    )
    score_tokens: int | None = option(
        None,
        "tokens of a document that models score, at most; a longer one is read in four evenly "
        "spaced pieces. By default 256 by document, all by token",
        minimum=4,
    )
    max_bad_fraction: float = option(
        0.01,
        "share of the pool's bytes that may lie in shards and rows that cannot be read; they are "
        "quarantined, and more of them stop the run",
        minimum=0,
        maximum=1,
    )
    seed: int = option(0, "every random choice follows from it", minimum=0, maximum=2**63 - 1)
    text_column: str = option("text", "the pool's column that holds the text")
    target_text_column: str | None = option(
        None, "the target's column that holds the text; text_column by default"
    )
    metadata_columns: tuple[str, ...] | None = option(
        None, "pool columns copied into the log; every short scalar column by default"
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    blade: BladeConfig = dataclasses.field(default_factory=BladeConfig)
    dsir: DsirConfig = dataclasses.field(default_factory=DsirConfig)
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    perplexity: PerplexityConfig = dataclasses.field(default_factory=PerplexityConfig)
    write: WriteConfig = dataclasses.field(default_factory=WriteConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool", "target", "out"):
            if not getattr(self, name):  # fsspec takes it for the current folder
                raise InvalidInput(
                    f"{name} is empty.", f"Give --{name} or write {name} in the config."
                )
        if self.granularity == "token" and self.final_pass == "ensemble":
            raise InvalidInput(
                "blade.final is ensemble, but granularity is token.",
                "Set blade.final to none or rescore, or decide by document.",
            )
        if self.granularity == "token" and self.score_tokens is not None:
            raise InvalidInput(
                f"score_tokens is {self.score_tokens}, but granularity is token, where every token "
                "is decided.",
                "Leave score_tokens out, or decide by document.",
            )
        by_rounds = self.method in ("blade", "rho1") and self.final_pass == "none"
        if by_rounds and (self.blade.round_share or 1) < 1:
            several = self.method == "blade" and self.granularity == "document"
            passes = "rescore or ensemble" if several else "rescore"
            raise InvalidInput(
                f"blade.round_share is {self.blade.round_share:g}, but no final pass decides about "
                "the rest of the pool.",
                f"Set blade.final to {passes}, or leave blade.round_share out.",
            )
        if self.granularity == "token" and self.visits > 1 and self.blade.average != "last":
            raise InvalidInput(
                "At token granularity the last decision about a token stands, but blade.average is "
                f"{self.blade.average or 'uniform'} and every document is visited {self.visits} "
                "times.",
                "Set blade.average to last.",
            )

    @property
    def visits(self) -> int:
        """How often a document is decided at most: once in a pass, and in a final one."""
        if self.method not in ("blade", "rho1"):
            return 1
        return (self.blade.passes or 1) + (self.final_pass != "none")

    @property
    def final_pass(self) -> str:
        """What `blade.final` comes to under this method and granularity; an ensemble is blade's
        alone.
        """
        ensemble = self.method == "blade" and self.granularity == "document"
        final = self.blade.final or ("ensemble" if ensemble else "none")
        return "none" if final == "ensemble" and self.method != "blade" else final
