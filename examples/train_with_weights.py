"""Train a transformers model on the document weights of a run.

`curate_weight` says how often a document should be seen, relative to the others. Here documents,
cut to the model's window, are drawn in proportion to it; a trainer that reads in order can instead
train on a copy in which the weights are repetition (`curate export OUT --to hf --dest DEST
--materialize`).

Usage: python examples/train_with_weights.py OUT DEST [--window 512] [--steps 1000]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torch.utils.data import Sampler, WeightedRandomSampler
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)


class WeightedTrainer(Trainer):
    """Draws examples in proportion to their weight instead of once an epoch."""

    def __init__(self, *args: object, weights: list[float], **settings: object) -> None:
        super().__init__(*args, **settings)
        self.weights = weights

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:
        generator = torch.Generator().manual_seed(self.args.seed)
        return WeightedRandomSampler(self.weights, len(self.weights), generator=generator)


def weighted_dataset(out: str, column: str, tokenizer: Any, window: int) -> Dataset:
    """All kept documents of a run as pieces of at most `window` tokens, a separator in front."""
    separator = tokenizer.bos_token_id
    separator = tokenizer.eos_token_id if separator is None else separator
    rows = load_dataset(out, split="train").select_columns([column, "curate_weight"])

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tokens = tokenizer(batch[column], add_special_tokens=False)["input_ids"]
        pieces = [
            ([separator, *one[start : start + window - 1]], weight)
            for one, weight in zip(tokens, batch["curate_weight"], strict=True)
            for start in range(0, len(one), window - 1)
        ]
        return {"input_ids": [one for one, _ in pieces], "weight": [weight for _, weight in pieces]}

    return rows.map(cut, batched=True, remove_columns=rows.column_names)


def main() -> None:
    """Train, and save the model with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out")
    parser.add_argument("dest")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--text-column", default="text")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(f"{options.out}/tokenizer")
    if tokenizer.pad_token is None:  # padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    examples = weighted_dataset(options.out, options.text_column, tokenizer, options.window)
    shape = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    trainer = WeightedTrainer(
        weights=list(examples["weight"]),
        model=LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), intermediate_size=704, **shape)
        ),
        args=TrainingArguments(
            output_dir=options.dest,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            logging_steps=max(1, options.steps // 10),
        ),
        train_dataset=examples.select_columns(["input_ids"]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    print(f"final loss {trainer.train().training_loss:.3f} nats per token")
    trainer.save_model(options.dest)
    tokenizer.save_pretrained(options.dest)


if __name__ == "__main__":
    main()
