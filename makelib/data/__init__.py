"""The three tables and where they come from. This room writes and reads catalogues and cuts text into words and tokens; it knows no model.

In reading order: `catalog` (the tables, read), `tables` (the tables, written), `pictures` (photographs as arrays), `text` (words, tokens),
`tokens` (those of a catalogue, kept with it), and `sources`: `bazaar` (the generated world), `files` (folders of one's own), `hub` (public data sets).
"""
