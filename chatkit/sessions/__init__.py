"""Stores for turns."""
