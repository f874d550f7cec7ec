"""The selection log: one DuckDB file that says for every document, kept or not, why."""
