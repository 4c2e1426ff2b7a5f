"""Serving: uses a trained model, as to generate text."""
