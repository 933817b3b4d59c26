"""Many students from one label set: `trainer sweep`.

`grid` makes trials of a YAML file, `schedule` runs them by Ray Tune, `leaderboard` ranks them;
`run` calls the three. A trial's folder is the only state that lasts: Ray's own is thrown away.
"""
