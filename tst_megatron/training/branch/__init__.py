"""A branch: a new run that begins at a saved step of another, its trunk (docs/branching.md).

``source`` looks at the trunk, ``recipe`` is what the branch is to train, ``changes`` what may
differ from the trunk, ``folder`` the files of the new run, and ``branch`` makes one of all that.
``checkpoint/run_files.py`` reads what a branch knows of its trunk.
"""
