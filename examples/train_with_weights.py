"""Train a transformers model on the document weights of a run.

`curate_weight` says how often a document should be seen, relative to the others. Here documents are
drawn in proportion to it; a trainer that reads in order can instead train on a copy in which the
weights are repetition (`curate export OUT --to hf --dest DEST --materialize`).

Usage: python examples/train_with_weights.py OUT DEST [--window 512] [--steps 1000]
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
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
    rows = load_dataset(options.out, split="train")
    texts = rows.select_columns([options.text_column])
    examples = texts.map(
        lambda batch: tokenizer(
            [tokenizer.bos_token + text for text in batch[options.text_column]],
            truncation=True,
            max_length=options.window,
        ),
        batched=True,
        remove_columns=texts.column_names,
    )
    shape = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    trainer = WeightedTrainer(
        weights=list(rows["curate_weight"]),
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
        train_dataset=examples,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    print(f"final loss {trainer.train().training_loss:.3f} nats per token")
    trainer.save_model(options.dest)
    tokenizer.save_pretrained(options.dest)


if __name__ == "__main__":
    main()
