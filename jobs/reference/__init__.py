"""The reference trainer: a small honest policy for MuJoCo's Reacher-v5, recorded, trained, compared, evaluated and served.

Nothing heavy is imported here: each program imports JAX, MuJoCo or websockets itself, when it needs them.
"""
