"""How often the test of a report rejects a true null, by simulation: `python tests/study/simulations.py` prints the table
that docs/method.md quotes (a minute). Sizes are those observed in three-seed runs of `quick`, in points.
"""

import numpy as np

from makelib.study.statistics import estimate

#: metric -> (standard deviation of a run's own shift in a paired difference, standard error over queries of a 3-seed mean)
OBSERVED = {"Rel@10": (0.47, 0.30), "HitRate@100": (0.92, 0.55), "Recall@100": (0.75, 0.41)}
INTENTS = 300


def draws(metric: str, seeds: int, trials: int, particular: float, rng: np.random.Generator) -> np.ndarray:
    """Differences without an effect, (trials, seeds, intents); `particular`: the share of the queries' variance of a
    three-seed mean that is new with every training."""
    of_run, of_queries = (value / 100 for value in OBSERVED[metric])
    run = rng.normal(0, of_run, (trials, seeds, 1))
    intent = rng.normal(0, of_queries * np.sqrt((1 - particular) * INTENTS), (trials, 1, INTENTS))
    both = rng.normal(0, of_queries * np.sqrt(3 * particular * INTENTS), (trials, seeds, INTENTS))
    return run + intent + both


def rejected(metric: str, seeds: int, trials: int, particular: float) -> tuple[float, float]:
    """Shares of experiments without an effect that are called significant at .05: by our test, and by one over queries."""
    rng, ours, of_queries = np.random.default_rng([seeds, len(metric)]), 0, 0
    for _ in range(trials // 500):
        differences = draws(metric, seeds, 500, particular, rng)
        ours += (estimate(differences, np.arange(INTENTS)).p_value < 0.05).sum()
        of_queries += (estimate(differences.mean(axis=1, keepdims=True), np.arange(INTENTS)).p_value < 0.05).sum()
    return ours / (trials // 500 * 500), of_queries / (trials // 500 * 500)


if __name__ == "__main__":
    print("| metric | seeds | new with every training | rejected | rejected by a test over queries alone |")
    print("| --- | --- | --- | --- | --- |")
    for name in OBSERVED:
        for count in (3, 5):
            for share in (0.0, 0.3, 0.6):
                found = rejected(name, count, 20000, share)
                print(f"| {name} | {count} | {share:.0%} | {found[0]:.1%} | {found[1]:.1%} |")
