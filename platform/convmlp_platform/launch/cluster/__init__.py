"""The Ray cluster: joining it, its room, its environment.

Files in reading order:

    connect             A connection to the Ray cluster a job names, or a local Ray for as long as the job
    auth                The choice of Ray's authentication
    capacity            Whether the cluster can hold what a job asks for; a cluster that grows is asked for it
    machine_values      Values of a training job that follow from the machines it runs on, `auto`
    ray_cluster         The connected Ray cluster, as supervision sees it
    worker_environment  The part of the driver's environment that must be the same in every process of a job
    working_dir         Code that comes with a job (`ray job submit --working-dir .`) wins over the package
    local_cluster       A real Ray cluster of several nodes on this machine
    ray_internals       Ray's private names that launching uses, each in one function

May import: config, data_prep.console, data_prep.storage, errors, launch.cluster_view, launch.workers, runs,
tracking.provenance.
"""
