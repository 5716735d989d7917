"""The ablation explorer: which variant is better, for whom, by how much, and on which queries."""
