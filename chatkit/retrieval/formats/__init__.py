"""Readers of one format each: what a file holds to text, title, sections and pages. Run apart, by `apart.Reader`."""
