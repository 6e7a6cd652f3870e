"""The run folder: what it is (``folder``), what a start writes into it, and what it reads back.

``plan`` is what a run trains, and ``identity`` what makes it the same run at a later start.
``start`` plans a start, ``prepare`` and ``indexes`` make the folder and the text ready, ``saves``
looks after the checkpoints, ``records`` after damaged files, and ``endings`` writes how it ended.
``launch`` starts the ranks of a small job.
"""
