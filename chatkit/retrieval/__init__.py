"""The encoder, the index directory and how it is built and searched."""
