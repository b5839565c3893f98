"""Communication: who this process is, how ranks find each other, and sums in a fixed order.

`world`, `rendezvous` and `tree` know no model and no file, and could be lifted out on their own.
"""
