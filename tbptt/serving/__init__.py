"""Serving: uses a trained model, as to carry sessions, write text and forecast."""
