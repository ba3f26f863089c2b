"""A policy server from its user's side: started, waited for, asked once, ended. Nothing heavy is imported here."""
