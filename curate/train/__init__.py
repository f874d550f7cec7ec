"""The language models and every optimizer step taken on them."""
