"""The method: from tables to trained weights. This room reads catalogues and knows neither index nor test queries.

In reading order: `encoders` (query, title and image), `fusion` (Modal Adaptation and its rivals), `keywords` (Keyword Enhancement), `losses`
(the objectives), `matching` (their heads for pairs), `make` (the model), `batches` (what a step sees), `warmup` (the image encoder learns to see),
`frozen` (towers that are read, not trained), `optim`, `checkpoint`, `caching` (steps of large batches), and `training` (the loop).
"""
