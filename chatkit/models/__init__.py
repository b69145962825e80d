"""Language models behind one seam, and where their files come from."""
