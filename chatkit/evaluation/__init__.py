"""Measurements of a running or assembled chatkit."""
