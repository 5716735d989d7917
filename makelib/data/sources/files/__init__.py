"""Folders of one's own. In reading order: `options`; `rows` (what becomes of a row), `readers` (tables of any kind, row by row), `mojibake` (text
that was encoded twice), `systems` (exports of shop systems); `cells` (what a cell names), `paths` (where that lies), `photos`; `products`,
`labels`, `terse` (sellers who say less); `judged` (where queries stand, ids, grades), `log`, `asked` (queries and clicks); `health` (what came in
and what was lost), `importer`.
"""
