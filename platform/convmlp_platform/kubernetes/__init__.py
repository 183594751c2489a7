"""Kubernetes: the RayJob of a job file, and all that can be known to be wrong with it before it costs GPUs.

Nothing here talks to Ray, and only `ask_cluster` to Kubernetes, by the user's own kubectl.

Files in reading order:

    options        The options of `convmlp k8s render | check`, each checked by itself
    graces         Seconds that pods get to save and end, and until a job that can't start is given up
    fitting        The reasons why a job can't run as the options say
    sizes          Pods, GPUs, CPUs, memory and disk of a job
    pods           The pods: head, workers, submitter
    manifests      ConfigMap, RayJob and the standing RayCluster around the pods
    render         From a job file and options to YAML
    check_job      `convmlp k8s check`
    ask_cluster    The cluster that kubectl points at: has it what the manifests name?

May import: config, data_prep.console, data_prep.storage, errors, jobs, launch.cluster, training.
"""
