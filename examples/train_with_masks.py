"""Train a transformers model on the token masks of a run, with the stock Trainer.

A run with --granularity token writes, beside each document, its `input_ids` and a `loss_mask` that
says which of them are training labels. A token that is no label still is context, so its label
becomes -100, which every transformers loss skips. The tokenizer lies in OUT/tokenizer.

Usage: python examples/train_with_masks.py OUT DEST [--window 512] [--steps 1000] [--model DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)


def windows(row: dict[str, Any], separator: int, window: int) -> Iterator[dict[str, list[int]]]:
    """A document as pieces of at most `window` tokens, the separator in front of each.

    Labels stand at the tokens themselves: transformers shifts them to the position before.
    """
    labels = [
        token if counts else -100
        for token, counts in zip(row["input_ids"], row["loss_mask"], strict=True)
    ]
    for start in range(0, len(labels), window - 1):
        piece = labels[start : start + window - 1]
        if any(label != -100 for label in piece):
            tokens = row["input_ids"][start : start + window - 1]
            yield {"input_ids": [separator, *tokens], "labels": [-100, *piece]}


def masked_dataset(out: str, separator: int, window: int) -> Dataset:
    """All kept documents of a run as training examples."""
    rows = load_dataset(out, split="train").select_columns(["input_ids", "loss_mask"])

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        documents = [
            dict(zip(batch, one, strict=True)) for one in zip(*batch.values(), strict=True)
        ]
        pieces = [piece for one in documents for piece in windows(one, separator, window)]
        return {name: [piece[name] for piece in pieces] for name in ("input_ids", "labels")}

    return rows.map(cut, batched=True, remove_columns=rows.column_names)


def main() -> None:
    """Train, and save the model with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out")
    parser.add_argument("dest")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--model", help="pretrained weights with the run's tokenizer")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(f"{options.out}/tokenizer")
    if tokenizer.pad_token is None:  # padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    separator = tokenizer.bos_token_id
    separator = tokenizer.eos_token_id if separator is None else separator
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model, use_safetensors=True)
    else:
        shape = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), intermediate_size=704, **shape)
        )
    arguments = TrainingArguments(
        output_dir=options.dest,
        max_steps=options.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        logging_steps=max(1, options.steps // 10),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=masked_dataset(options.out, separator, options.window),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    print(f"final loss {trainer.train().training_loss:.3f} nats per label")
    trainer.save_model(options.dest)
    tokenizer.save_pretrained(options.dest)


if __name__ == "__main__":
    main()
