"""trainvitals."""
