"""Folders of one's own. In reading order: `options`, `rows` (tables of any kind, row by row), `products`, `photos`, `labels`, `terse` (sellers who
say less), `asked` (queries and clicks), `health` (what came in and what was lost), `importer`.
"""
