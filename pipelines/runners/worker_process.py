"""A worker process of the local runner: Beam's own, but that Ctrl+C ends it without a word, as its driver says what there is to say."""

import runpy
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    runpy.run_module("apache_beam.runners.worker.sdk_worker_main", run_name="__main__", alter_sys=True)
