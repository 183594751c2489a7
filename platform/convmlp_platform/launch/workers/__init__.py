"""The workers: an agent on each, which forks and watches a training process.

Files in reading order:

    worker_group      The agents of a run
    placement         The placement of workers on nodes, and the rank of each worker
    agent             The Ray actor beside each training process
    fork_server_link  An agent's hold on the fork server of its node
    fork_server       The process that a node's training processes are forked from
    training_process  One training process
    process_files     Folders of ours on a node, readable by their owner alone
    process_tree      Processes that end with the one that started them, however that ended
    worker_report     The report of an agent to the supervisor about its training process

May import: config, data, data_prep.console, data_prep.storage, distributed, errors, health, launch, report, runs,
tracking, training.
"""
