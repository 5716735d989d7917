"""Where catalogues come from. Each source writes the three tables of `makelib.catalog`; nothing after them knows which."""
