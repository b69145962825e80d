"""HTTP: one app, one module a protocol."""
