"""How ranks find out who they are, meet, and are told to stop."""
