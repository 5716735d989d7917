"""Headless runs: `offline` (a notebook as one page without network), `pages` (the index), `run` (papermill, provenance, summary)."""
