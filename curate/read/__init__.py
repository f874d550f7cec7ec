"""From shards of text to streams of tokenized documents."""
