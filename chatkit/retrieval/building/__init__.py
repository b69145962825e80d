"""From documents to a finished version: staging chunks, embedding what is new, writing, and more than one machine."""
