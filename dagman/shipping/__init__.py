"""Moving archives between this machine and staging: `segue stage` brings inputs there, `segue pull` brings checkpoints back.

A place (place.py) is staging as seen from here: a directory, or a directory behind ssh. The flows (staging.py, pulling.py) know only places.
"""
