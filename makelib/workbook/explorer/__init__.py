"""The query explorer: `state` (what is shown, as a value), `html` (pieces of a page), `views` (state to HTML), `widget` (the controls)."""
