"""What people look at. The only room with widgets, papermill and nbconvert; it trains and measures nothing itself.

In reading order: `plots` (figures), `notebook` (what a chapter's cells call), `explorer` (type a query, see why), `reports` (headless runs and
their offline pages).
"""
