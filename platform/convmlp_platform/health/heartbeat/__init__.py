"""What a rank is doing now, for those who watch it.

Files in reading order:

    phases     The phases of a rank, moment by moment
    heartbeat  The heartbeat of a rank

May import: nothing of ours.
"""
