"""chatkit's doors from the other side: what talks to a running service."""
