"""The experiment: which arms run, how they are judged, and what may be claimed. This room knows no widget and no page.

In reading order: `studies` (what is compared, fixed beforehand), `arms` (one variant with one seed), `cluster` (arms on many machines),
`experiment` (the grid), `tuning` (the search for settings), `metrics`, `segments`, `statistics` (intervals, tests, result rows), `baselines`
(BM25, behaviour), `peers` (pretrained dual encoders), `lines` (what stands beside the arms is scored once), `readers` and `bounds` (how far
any ranking could come), `probes` (what the weights follow), `diagnostics` (shape and calibration of a space), `shop` (a simulated A/B test),
`trec` (files for other tools), `bench`, and `ratios` (what `bench` measures against peers).
"""
