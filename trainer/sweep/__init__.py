"""Many students from one label set: `trainer sweep`.

`grid` turns a YAML file into trials, `schedule` runs them with Ray Tune, `leaderboard` ranks them;
`run_sweep` calls the three. Only the trials' folders outlive a sweep: Ray's state is thrown away.
"""
