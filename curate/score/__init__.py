"""Losses of documents under frozen models, and the excess loss made of them."""
