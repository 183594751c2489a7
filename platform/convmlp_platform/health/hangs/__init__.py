"""Finds runs that stand still, and the rank that the others wait for.

Files in reading order:

    hang_watch    The rank that stands still while it should not, found from the heartbeats of all ranks
    hang_culprit  The rank that the others of a hang wait for
    stacks        The place where a process stands
    waiting       The wait of a process's main thread, as its Python stack shows it
    process_view  Facts that Linux shows of a process in /proc, without asking the process

May import: config, health.heartbeat.
"""
