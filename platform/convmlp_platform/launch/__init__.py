"""Runs training processes on Ray and starts them again after failures.

Files in reading order:

    supervisor/  Starts attempts at a run and decides after each failure whether and how to go on
    workers/     The workers: an agent on each, which forks and watches a training process
    cluster/     The Ray cluster: joining it, its room, its environment
    early_start  The fork server of the driver's node, begun before the cluster is reached
    cluster_view The cluster and the clock as supervision sees them
    one_worker   Work that one worker of a cluster does
    run_summary  The summary of a finished training job for its user
    messages     The driver's messages on its terminal about starts and ends, one line each

May import: config, data, data_prep.console, data_prep.storage, distributed, errors, goodput, health, report, runs,
tracking, training.
"""
