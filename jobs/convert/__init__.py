"""`segue convert`: recorded robot episodes of several layouts to a LeRobot dataset, through the lerobot package itself.

reader.py is the contract of a layout; inspection.py judges an episode before anything is written; part.py writes one episode through
lerobot; conversion.py brings them together.
"""
