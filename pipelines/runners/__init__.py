"""Where the work of a run is done: local processes, Dask, Beam runners behind a job service, Dataflow."""
