"""makelib: would looking at the images, not only the titles, make a product search better, and can it be proved?

The modules, in the order in which the data flows: `settings`, `catalog`, `sources`, `text`, `keywords`, `encoders`,
`fusion`, `model`, `losses`, `training`, `index`, `evaluation`, `ablation`, `plots`, `explorer`, `reports`.
Imports run downwards in that list only.
"""

__version__ = "0.1.0"
