"""The journal of a service: its last picks, what each was chosen among and why, and how it went.

    Options(journal=JournalOptions(picks=1000, path="/var/log/shop/journal.jsonl"))

General layout: `entry` has the values, `gaze` sees what a policy looks at, `journal` records, `writer` writes to a file
what was recorded, `reading` reads it. `clientlb.replay` asks what would have happened.

A balancer without a journal pays nothing for it: with one, its methods are bound anew when it is made.
"""

from clientlb.journal.entry import Candidate, Entry, Listed, Recording
from clientlb.journal.journal import Journal
from clientlb.journal.reading import read_journal

__all__ = ["Candidate", "Entry", "Journal", "Listed", "Recording", "read_journal"]
