"""A worker process of the local runner: Beam's own, but that Ctrl+C, and want of memory for a thread, end it without a word, as its
driver says what there is to say."""

import runpy
import signal

from scenemill.pipelines.starved import end_when_starved

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_when_starved(lambda: None)
    runpy.run_module("apache_beam.runners.worker.sdk_worker_main", run_name="__main__", alter_sys=True)
